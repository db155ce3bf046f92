"""Opens files that may have been put there by somebody else: never through a link, never a pipe, a device or a folder."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# O_NONBLOCK: opening a pipe must not wait for a writer.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class ForeignFileError(OSError):
    """Something else than a regular file of this user lies there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegularFile:
    """An open file, as it was when it was opened."""

    descriptor: int
    size: int
    mode: int
    """Permission bits."""
    place: tuple[int, int]
    """Device and number of the file, whatever names it has."""


@contextlib.contextmanager
def open_regular(path: Path | str, *, folder: int | None = None) -> Iterator[RegularFile]:
    """Open a regular file of this user for reading, once; close it when the block ends.

    Args:
        path: where it lies.
        folder: descriptor of the folder that a relative `path` starts from.

    Raises:
        OSError: there is none, or it cannot be opened.
    """
    descriptor = os.open(path, _FLAGS, dir_fd=folder)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            message = f"{path} is not a regular file of this user"
            raise ForeignFileError(message)
        place = (facts.st_dev, facts.st_ino)
        yield RegularFile(descriptor=descriptor, size=facts.st_size, mode=stat.S_IMODE(facts.st_mode), place=place)
    finally:
        os.close(descriptor)
