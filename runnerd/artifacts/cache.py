"""The artifact cache on disk: `<folder>/<engine fingerprint>/<hexadecimal digits of the bundle>.cwasm` and `.record`.

Nothing here is trusted: a cache hands out what it found, copied into a sealed memory file from one descriptor, together with the
record that must verify. Attacks it stops (T1): links that lead elsewhere, files of other users, files replaced or written while
they are read, a cache that fills the disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from registry.domain.digests import ContentHash, hex_of
from runnerd.artifacts.records import MAX_ARTIFACT_RECORD_BYTES
from runnerd.artifacts.regular_files import ForeignFileError, open_regular
from runnerd.artifacts.sealed import SealedFile, copy_descriptor, read_all, seal_copy, write_all

_FINGERPRINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,127}\Z")
_ARTIFACT_SUFFIX = ".cwasm"
_RECORD_SUFFIX = ".record"
_DRAFT_PREFIX = ".draft-"
_DRAFT_MAX_AGE_SECONDS = 3600
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedArtifact:
    """What the cache holds for a bundle: unverified, but unchangeable from here on."""

    artifact: SealedFile
    record: bytes


class ArtifactCache:
    """One folder of artifacts for one engine. All methods block on the disk: call them in a thread."""

    def __init__(self, folder: Path, *, fingerprint: str, max_bytes: int, max_artifact_bytes: int) -> None:
        if _FINGERPRINT.match(fingerprint) is None:
            message = f"an engine fingerprint cannot name a folder: {fingerprint[:80]!r}"
            raise ValueError(message)
        self._root = folder
        self._folder = folder / fingerprint
        self._max_bytes = max_bytes
        self._max_artifact_bytes = max_artifact_bytes

    def find(self, content_hash: ContentHash) -> CachedArtifact | None:
        """Return what lies there for the bundle, or None where something is missing, of another kind or too large."""
        name = hex_of(content_hash)
        try:
            with _open_folder(self._folder) as folder:
                record = _read_small(folder, name + _RECORD_SUFFIX)
                with open_regular(name + _ARTIFACT_SUFFIX, folder=folder) as file:
                    if file.size > self._max_artifact_bytes:
                        return None
                    artifact = seal_copy("artifact", file.descriptor, size=file.size)
                # The time of the last use decides what is evicted; that another process does the same is no harm.
                with contextlib.suppress(OSError):
                    os.utime(name + _RECORD_SUFFIX, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return None
        return CachedArtifact(artifact=artifact, record=record)

    def store(self, content_hash: ContentHash, artifact: SealedFile, record: bytes) -> bool:
        """Keep an artifact with its record; False where it is larger than the whole cache.

        Each file appears whole or not at all. A stop between the two leaves an artifact whose record does not verify, which is
        rejected and made again.

        Raises:
            OSError: the disk takes no more; nothing half-written remains under a name that `find` reads.
        """
        size = artifact.size + len(record)
        if size > self._max_bytes:
            return False
        self._make_room(size)
        name = hex_of(content_hash)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with _open_folder(self._folder) as folder:
            with _draft(folder, name + _ARTIFACT_SUFFIX) as descriptor:
                copy_descriptor(artifact.fileno(), descriptor, size=artifact.size)
            with _draft(folder, name + _RECORD_SUFFIX) as descriptor:
                write_all(descriptor, record)
        return True

    def discard(self, content_hash: ContentHash) -> None:
        """Forget what lies there for the bundle."""
        name = hex_of(content_hash)
        with contextlib.suppress(OSError), _open_folder(self._folder) as folder:
            for suffix in (_RECORD_SUFFIX, _ARTIFACT_SUFFIX):
                with contextlib.suppress(OSError):
                    os.unlink(name + suffix, dir_fd=folder)

    def _make_room(self, wanted: int) -> None:
        """Remove what was not used for longest, of any engine, until `wanted` bytes fit; and drafts that nobody finished."""
        kept: dict[Path, tuple[float, int]] = {}
        for path, facts in _files(self._root):
            if path.name.startswith(_DRAFT_PREFIX):
                if time.time() - facts.st_mtime > _DRAFT_MAX_AGE_SECONDS:
                    path.unlink(missing_ok=True)
                continue
            used, size = kept.get(path.with_suffix(""), (0.0, 0))
            kept[path.with_suffix("")] = (max(used, facts.st_mtime), size + facts.st_size)
        total = sum(size for _, size in kept.values())
        for stem, (_, size) in sorted(kept.items(), key=lambda item: item[1][0]):
            if total + wanted <= self._max_bytes:
                return
            for suffix in (_RECORD_SUFFIX, _ARTIFACT_SUFFIX):
                stem.with_name(stem.name + suffix).unlink(missing_ok=True)
            total -= size


def _files(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the regular files two levels below `root`, never through a link."""
    try:
        folders = [entry.path for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for folder in folders:
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(facts.st_mode):
                    yield Path(entry.path), facts


@contextlib.contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER_FLAGS)
    try:
        facts = os.fstat(descriptor)
        if facts.st_uid != os.geteuid() or facts.st_mode & _WRITABLE_BY_OTHERS:
            message = f"{path} belongs to, or can be written by, another user"
            raise ForeignFileError(message)
        yield descriptor
    finally:
        os.close(descriptor)


def _read_small(folder: int, name: str) -> bytes:
    with open_regular(name, folder=folder) as file:
        if file.size > MAX_ARTIFACT_RECORD_BYTES:
            message = f"{name} is too long for a record"
            raise ForeignFileError(message)
        return read_all(file.descriptor, size=file.size)


@contextlib.contextmanager
def _draft(folder: int, name: str) -> Iterator[int]:
    """Yield a new file that takes the place of `name` when the block ends without an error, and vanishes otherwise."""
    draft = f"{_DRAFT_PREFIX}{secrets.token_hex(8)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft, dir_fd=folder)
        raise
