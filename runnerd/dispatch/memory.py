"""How much memory the workers may have together, and which of them goes when they have more (T38).

The attack it stops: guests that fill the memory they were granted, all at once, until the kernel's out-of-memory killer takes the whole
container, and every tenant's calls with it. Three lines of defence, from the inside to the outside:

1. At start the pool's ceiling is lowered to the number of workers that fit at their ordinary size; where not even one fits, the
   daemon does not start.
2. While it runs, the daemon looks at what each worker holds. One above its own line goes; when all together are above the budget, the
   key (tenant) that holds most loses its largest worker. Those calls end as WORKER_CRASHED and count as an incident of their version.
3. A bomb may be faster than that look. Workers then are what the kernel kills first (`oom_score_adj`), never the daemon.

Grants are not summed up: every call of every worker at its cap would need hundreds of GiB, and hardly any uses a tenth of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from registry.domain.limits import MIB
from runnerd.dispatch import cgroups

ORDINARY_BYTES: Final = 64 * MIB
"""A worker without guests, generously."""
RESERVE_BYTES: Final = 256 * MIB
"""The daemon, its zygote and its other children, without loaded artifacts."""


class NotEnoughMemoryError(Exception):
    """Not even one worker fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimits:
    """What workers may hold."""

    budget_bytes: int
    """All together."""
    worker_bytes: int
    """One of them."""


def find_memory(*, cgroup_root: Path = cgroups.MOUNTED_AT, machine: Path = Path("/proc/meminfo")) -> int:
    """Return the bytes that this process's group may have: the lowest `memory.max`, or else the machine's memory."""
    total = next(int(line.split()[1]) * 1024 for line in machine.read_text(encoding="ascii").splitlines() if line.startswith("MemTotal:"))
    bounds = (int(text) for text in cgroups.contents("memory.max", root=cgroup_root) if text.strip().isdecimal())
    return min(total, *bounds, total)


def share_out(total_bytes: int, *, loaded_bytes: int, call_bytes: int, slots: int) -> MemoryLimits:
    """Return what the workers may hold.

    Args:
        total_bytes: that the daemon and everything it starts may have.
        loaded_bytes: of artifacts that the daemon keeps ready.
        call_bytes: linear memory that one call has usually.
        slots: calls that one worker holds.
    """
    reserve = max(RESERVE_BYTES, min(RESERVE_BYTES + loaded_bytes, total_bytes // 4))
    budget = max(0, total_bytes - reserve)
    return MemoryLimits(budget_bytes=budget, worker_bytes=min(budget, ORDINARY_BYTES + slots * call_bytes))


def workers_that_fit(limits: MemoryLimits, *, call_bytes: int) -> int:
    """Return how many workers fit that run one ordinary call each.

    Raises:
        NotEnoughMemoryError: not even one.
    """
    fitting = limits.budget_bytes // (ORDINARY_BYTES + call_bytes)
    if fitting < 1:
        message = (
            f"{limits.budget_bytes // MIB} MiB are left for workers, and one needs {(ORDINARY_BYTES + call_bytes) // MIB}: "
            "allow this process more memory, or lower limits.defaults.memory_bytes"
        )
        raise NotEnoughMemoryError(message)
    return fitting


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has for itself alone, 0 where it has ended. Shared pages (code, artifacts) are not counted.

    Raises:
        OSError: it cannot be read now, for want of descriptors for example.
    """
    try:
        # Readable for every process, however it is hardened; smaps is not.
        fields = Path(f"/proc/{pid}/statm").read_bytes().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


class Holder(Protocol):
    """A worker."""

    key: str
    """Whose calls it holds: a tenant, and behind a slash what they are kept apart by."""


ABOVE_ITS_LINE: Final = "memory"
FOR_THE_BUDGET: Final = "memory_pressure"
"""Causes of a worker's end. The second is nobody's fault: its tenant happened to hold most."""


def tenant_of(key: str) -> str:
    """Return the tenant of an isolation key. Tenants' ids hold no slash."""
    return key.partition("/")[0]


H = TypeVar("H", bound=Holder)


def too_much(held: Iterable[tuple[H, int]], limits: MemoryLimits) -> dict[H, str]:
    """Choose the workers that have to go.

    Args:
        held: each worker with the bytes that it has.
        limits: what they may have.

    Returns:
        Every worker above its own line; and, while the rest is above the budget, the largest of the tenant that holds most. With the cause.
    """
    rest = dict(held)
    leaving = {worker: ABOVE_ITS_LINE for worker, size in rest.items() if size > limits.worker_bytes}
    for worker in leaving:
        del rest[worker]
    while sum(rest.values()) > limits.budget_bytes:
        # SECURITY: by tenant, not by key: one with many installs or versions kept apart would be many small holders, and others would go.
        by_tenant: Counter[str] = Counter()
        for worker, size in rest.items():
            by_tenant[tenant_of(worker.key)] += size
        most = by_tenant.most_common(1)[0][0]
        largest = max((worker for worker in rest if tenant_of(worker.key) == most), key=lambda worker: rest[worker])
        leaving[largest] = FOR_THE_BUDGET
        del rest[largest]
    return leaving
