"""How many CPUs this daemon has, and which of them its workers may be pinned to (T38).

`os.cpu_count()` is the machine's, not the container's: a pod with two CPUs on a node of 64 would start workers for 64, and pods that pin to
"CPU 0" would all meet there. So the count is affinity ∩ cgroup quota, and `auto` pins only where no quota shares the CPUs out by time
and the affinity was not cut, which is a machine of our own.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runnerd.dispatch import cgroups

Pinning = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpus:
    """What the scheduler gives this process."""

    usable: int
    """CPUs worth of time, at least 1."""
    pin_to: tuple[int, ...]
    """CPUs to pin workers to, in turn; empty where they are not pinned."""

    def part(self, index: int, count: int) -> Cpus:
        """Return the share of one of `count` cells: neighbours stay together, and nobody is left without."""
        pins = self.pin_to
        own = pins[len(pins) * index // count : len(pins) * (index + 1) // count]
        usable = self.usable * (index + 1) // count - self.usable * index // count
        return Cpus(usable=max(1, usable), pin_to=own or pins)


def find_cpus(pinning: Pinning, *, cgroup_root: Path = cgroups.MOUNTED_AT) -> Cpus:
    """Look at affinity and quota."""
    affinity = sorted(os.sched_getaffinity(0))
    quota = _quota(cgroup_root)
    usable = len(affinity) if quota is None else max(1, min(len(affinity), math.ceil(quota)))
    own = quota is None and len(affinity) == (os.cpu_count() or len(affinity))
    pinned = pinning == "on" or (pinning == "auto" and own)
    return Cpus(usable=usable, pin_to=tuple(affinity) if pinned else ())


def _quota(root: Path) -> float | None:
    """Return the CPUs worth of time that cgroup v2 allows, or None."""
    bounds: list[float] = []
    for text in cgroups.contents("cpu.max", root=root):
        with contextlib.suppress(ValueError, ZeroDivisionError):
            quota, period = text.split()[:2]
            bounds += [] if quota == "max" else [int(quota) / int(period)]
    return min(bounds, default=None)
