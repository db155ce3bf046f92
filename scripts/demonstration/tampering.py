"""One flipped byte: in an archive on its way in, and in an archive that lies in the store already."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.bundles.store import object_keys
from registry.cli.state import MachineState
from registry.domain.digests import ContentHash, hex_of


def flipped_copy(archive: Path, target: Path) -> Path:
    """Copy an archive with one bit of one byte in its middle changed."""
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    return target


@contextmanager
def flipped_in_store(state: MachineState, content_hash: ContentHash) -> Iterator[None]:
    """Change one bit of a stored archive for the length of the body, and put it right afterwards."""
    stored = state.bundles / object_keys(content_hash).archive
    _flip(stored)
    try:
        yield
    finally:
        _flip(stored)


@contextmanager
def set_aside(state: MachineState, content_hash: ContentHash) -> Iterator[None]:
    """For the length of the body, set aside what a daemon keeps on disk of one bundle, so that it must fetch it to load it."""
    aside = state.root / "cache.aside"
    shutil.rmtree(aside, ignore_errors=True)
    kept = [file for file in state.cache.rglob(f"{hex_of(content_hash)}.*") if file.is_file()]
    for file in kept:
        target = aside / file.relative_to(state.cache)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    try:
        yield
    finally:
        for file in kept:
            (aside / file.relative_to(state.cache)).rename(file)
        shutil.rmtree(aside, ignore_errors=True)


def _flip(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        place = os.fstat(descriptor).st_size // 2
        byte = os.pread(descriptor, 1, place)
        os.pwrite(descriptor, bytes([byte[0] ^ 1]), place)
    finally:
        os.close(descriptor)
