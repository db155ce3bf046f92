"""CPU time and memory of the daemon and its workers, from what every process may read of any other in /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from registry.cli.development import DevelopmentMachine

_TICK_US: Final = 1_000_000 / os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")
# Of /proc/<pid>/stat, behind the name in brackets: parent, user time, system time.
_PARENT, _USER, _SYSTEM = 1, 11, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTimes:
    """Microseconds of CPU time, in steps of the kernel's clock tick."""

    daemon_us: float
    workers_us: float

    def since(self, earlier: CpuTimes) -> CpuTimes:
        """Return what was used since `earlier`."""
        return CpuTimes(daemon_us=self.daemon_us - earlier.daemon_us, workers_us=self.workers_us - earlier.workers_us)


def cpu_times(machine: DevelopmentMachine) -> CpuTimes:
    """Read the CPU time of the daemon and of all its workers that live now."""
    daemon = machine.runnerd_pid
    return CpuTimes(daemon_us=_cpu_us(daemon), workers_us=sum(map(_cpu_us, worker_pids(daemon))))


def worker_pids(daemon: int) -> list[int]:
    """Return the workers: the children of the daemon's children (of the zygote), not these themselves."""
    parents: dict[int, int] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            parents[int(folder.name)] = int(fields[_PARENT])
    return [pid for pid, parent in parents.items() if parents.get(parent) == daemon]


def private_kib(pid: int) -> int:
    """Return the anonymous memory that a process has resident; 0 where it has ended."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def shared_memory_kib() -> int:
    """Return what memory files take on this machine, those of others included."""
    lines = (_PROC / "meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:"))


def _cpu_us(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[_USER]) + int(fields[_SYSTEM])) * _TICK_US if fields else 0.0


def _stat(pid: int) -> list[str]:
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
