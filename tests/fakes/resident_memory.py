"""Peak resident memory of this process within a block, from the kernel's own high-water mark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Growth:
    """`bytes` is set when the block ends: the peak inside it above what was resident before it."""

    bytes: int = 0


@contextmanager
def peak_growth() -> Iterator[Growth]:
    """Measure how far resident memory rose above its value at the start."""
    # 5: reset the high-water mark (proc(5)); without it an earlier peak would hide this one.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    growth = Growth()
    yield growth
    growth.bytes = max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)
