"""How many workers this daemon has: what the operator says, the CPUs, and the memory, whichever is least (T38)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from runnerd.config import Cell, RunnerdSettings
from runnerd.dispatch.cpus import Cpus, find_cpus
from runnerd.dispatch.memory import MIB, MemoryLimits, find_memory, share_out, workers_that_fit

WORKERS_PER_CPU: Final = 2
MOST_WORKERS_PER_CPU: Final = 32

_log = structlog.get_logger(__name__)


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
