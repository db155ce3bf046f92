"""How many workers this daemon has: what the operator says, the CPUs, and the memory, whichever is least (T38)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from registry.domain.limits import MIB
from runnerd.config import Cell, RunnerdSettings
from runnerd.dispatch.cpus import Cpus, find_cpus
from runnerd.dispatch.memory import ORDINARY_BYTES, MemoryLimits, find_memory, share_out, workers_that_fit

WORKERS_PER_CPU: Final = 2
MOST_WORKERS_PER_CPU: Final = 32
CPUS_PER_CELL: Final = 4
"""One front feeds about three CPUs of guests, and needs most of one itself (N5)."""

_log = structlog.get_logger(__name__)


def cells_of(settings: RunnerdSettings) -> int:
    """Return how many cells there should be: what the operator says, or one for each four CPUs as far as each has room for two workers."""
    if settings.cells:
        return settings.cells
    workers, call_bytes = settings.workers, settings.limits.effective_defaults.memory_bytes
    total = workers.memory_bytes or find_memory()
    cells = max(1, find_cpus("off").usable // CPUS_PER_CELL)
    while cells > 1:
        loaded_bytes = settings.artifacts.loaded_bytes // cells
        share = share_out(total // cells, loaded_bytes=loaded_bytes, call_bytes=call_bytes, slots=workers.slots)
        if share.budget_bytes >= 2 * (ORDINARY_BYTES + call_bytes):
            break
        cells -= 1
    return cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What this daemon can run at once."""

    cpus: Cpus
    floor: int
    """Workers kept alive."""
    ceiling: int
    """Workers at most."""
    memory: MemoryLimits

    @classmethod
    def find(cls, settings: RunnerdSettings, cell: Cell) -> Capacity:
        """Look at the machine and at the settings, which are the cell's own.

        Raises:
            NotEnoughMemoryError: not even one worker fits.
        """
        workers, call_bytes = settings.workers, settings.limits.effective_defaults.memory_bytes
        cpus = find_cpus(workers.pin).part(cell.index, cell.count)
        memory = share_out(
            workers.memory_bytes or find_memory() // cell.count,
            loaded_bytes=settings.artifacts.loaded_bytes,
            call_bytes=call_bytes,
            slots=workers.slots,
        )
        wanted = workers.ceiling or MOST_WORKERS_PER_CPU * cpus.usable
        ceiling = min(wanted, workers_that_fit(memory, call_bytes=call_bytes))
        if ceiling < wanted:
            _log.warning("memory_lowers_ceiling", wanted=wanted, ceiling=ceiling, budget_mib=memory.budget_bytes // MIB)
        return cls(cpus=cpus, floor=min(workers.floor or WORKERS_PER_CPU * cpus.usable, ceiling), ceiling=ceiling, memory=memory)
