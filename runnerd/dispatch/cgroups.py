"""What cgroup v2 says to this process, from its own group up to the top: the lowest bound counts, wherever it was set (T38).

In a container the group's own files lie at the top of what is mounted; under systemd they lie further down, and a slice above may be
tighter than the service.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MOUNTED_AT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def contents(name: str, *, root: Path = MOUNTED_AT, own: Path = _OWN) -> Iterator[str]:
    """Yield what the files of this name say: in this process's group, and in each above it.

    Args:
        name: of the file, for example "memory.max".
        root: where the hierarchy is mounted.
        own: the file that names this process's group.
    """
    group = _own_group(own)
    for folder in (group, *group.parents):
        try:
            yield (root / folder).joinpath(name).read_text(encoding="ascii")
        except (OSError, ValueError):
            continue


def _own_group(file: Path) -> PurePosixPath:
    """Return the path of this process's group below the mount, relative; the top itself where nothing says otherwise."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    group = PurePosixPath(path.lstrip("/"))
    # Outside of a cgroup namespace's own part the kernel says "/../…".
    return PurePosixPath() if ".." in group.parts else group
