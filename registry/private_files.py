"""Writes small files that only their owner may read: keys, passwords, roots of trust.

Attacks and accidents: a moment in which others can read a key (the mode is given when the file is made, not afterwards); a link planted
under the name; a reader, or a second process that starts at the same time, that finds half a file. So a file is written whole under a
name that nobody can guess, flushed to disk, and then gets its name in one step.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def replace_private_file(path: Path, data: bytes) -> None:
    """Write `path` (0600), whole or not at all, in the place of what is there.

    Raises:
        OSError: the folder takes no file.
    """
    draft = _draft(path, data, 0o600)
    try:
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def create_private_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `path`, whole or not at all, if there is nothing of that name.

    Args:
        path: the file.
        data: all that it holds.
        mode: permission bits; given for the public half that lies beside a private one.

    Raises:
        FileExistsError: there is something of that name, be it a link that leads nowhere; it stays as it is.
        OSError: the folder takes no file.
    """
    draft = _draft(path, data, mode)
    try:
        # SECURITY: a link never replaces; a rename would. Of two writers exactly one creates the file.
        os.link(draft, path, follow_symlinks=False)
    finally:
        draft.unlink(missing_ok=True)


def _draft(path: Path, data: bytes, mode: int) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, _NEW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft
