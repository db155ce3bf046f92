"""The artifact cache on disk: `<folder>/<engine fingerprint>/<hexadecimal digits of the bundle>.cwasm` and `.record`.

Nothing here is trusted: a cache hands out what it found, copied into a sealed memory file from one descriptor, together with the
record that must verify. Attacks it stops (T1): links that lead elsewhere, files of other users, files replaced or written while
they are read, a cache that fills the disk.

Several processes may share the folder. What one of them has loaded lies in memory, so removing a file takes nothing from anybody; the
two files of an entry are exchanged and opened under a lock of the folder, so that nobody reads one writer's artifact with another's
record. Files are not flushed to the disk: what a crash of the machine leaves behind does not verify, and is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from registry.domain.digests import ContentHash, from_hex, hex_of
from runnerd.artifacts.records import MAX_ARTIFACT_RECORD_BYTES
from runnerd.artifacts.regular_files import ForeignFileError, open_regular
from runnerd.artifacts.sealed import SealedFile, copy_descriptor, read_all, seal_copy, write_all

_FINGERPRINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,127}\Z")
_ARTIFACT_SUFFIX = ".cwasm"
_RECORD_SUFFIX = ".record"
_RECORD_NAME = re.compile(r"([0-9a-f]{64})\.record\Z")
_DRAFT_PREFIX = ".draft-"
_DRAFT_MAX_AGE_SECONDS = 3600
_OTHER_ENGINE_MAX_AGE_SECONDS = 14 * 24 * 3600
"""Artifacts of an engine that was not used for this long are removed; until then a rollback finds them."""
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedArtifact:
    """What the cache holds for a bundle: unverified, but unchangeable from here on."""

    artifact: SealedFile
    record: bytes
    place: tuple[int, int]
    """Device and number of the artifact's file: which file it was, whatever lies under its name later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """One bundle that the cache holds something for."""

    content_hash: ContentHash
    size: int
    """Bytes of the artifact."""


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

    def find(self, content_hash: ContentHash, *, used: bool = True) -> CachedArtifact | None:
        """Return what lies there for the bundle, or None where something is missing, of another kind or too large.

        Args:
            content_hash: the bundle.
            used: whether this counts as a use, which keeps the entry from being evicted.
        """
        name = hex_of(content_hash)
        try:
            with _open_folder(self._folder) as folder, contextlib.ExitStack() as stack:
                with _locked(folder, fcntl.LOCK_SH):
                    record = _read_small(folder, name + _RECORD_SUFFIX)
                    file = stack.enter_context(open_regular(name + _ARTIFACT_SUFFIX, folder=folder))
                if file.size > self._max_artifact_bytes:
                    return None
                artifact = seal_copy("artifact", file.descriptor, size=file.size)
                if used:
                    # The time of the last use decides what is evicted; that another process does the same is no harm.
                    with contextlib.suppress(OSError):
                        os.utime(name + _RECORD_SUFFIX, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return None
        return CachedArtifact(artifact=artifact, record=record, place=file.place)

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
        names = (name + _ARTIFACT_SUFFIX, name + _RECORD_SUFFIX)
        with _open_folder(self._folder) as folder, _drafts(folder, *names) as (artifact_draft, record_draft):
            copy_descriptor(artifact.fileno(), artifact_draft, size=artifact.size)
            write_all(record_draft, record)
        return True

    def discard(self, content_hash: ContentHash, rejected: CachedArtifact) -> None:
        """Forget what was found for the bundle, unless another file has taken its place since."""
        name = hex_of(content_hash)
        with contextlib.suppress(OSError), _open_folder(self._folder) as folder, _locked(folder, fcntl.LOCK_EX):
            facts = os.stat(name + _ARTIFACT_SUFFIX, dir_fd=folder, follow_symlinks=False)
            if (facts.st_dev, facts.st_ino) == rejected.place:
                for suffix in (_RECORD_SUFFIX, _ARTIFACT_SUFFIX):
                    with contextlib.suppress(OSError):
                        os.unlink(name + suffix, dir_fd=folder)

    def recent(self) -> tuple[CacheEntry, ...]:
        """List what there is for this engine, last used first. Nothing of it is verified."""
        found: list[tuple[float, CacheEntry]] = []
        with contextlib.suppress(OSError), _open_folder(self._folder) as folder:
            for name in os.listdir(folder):  # noqa: PTH208 - a descriptor has no path
                match = _RECORD_NAME.match(name)
                if match is not None:
                    with contextlib.suppress(OSError):
                        used = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
                        size = os.stat(match[1] + _ARTIFACT_SUFFIX, dir_fd=folder, follow_symlinks=False).st_size
                        found.append((used, CacheEntry(content_hash=from_hex(match[1]), size=size)))
        return tuple(entry for _, entry in sorted(found, key=lambda item: item[0], reverse=True))

    def prune(self) -> None:
        """Remove the artifacts of engines that nobody has used for two weeks, with their folders."""
        newest: dict[str, float] = {}
        with contextlib.suppress(OSError):
            newest = {entry.path: entry.stat(follow_symlinks=False).st_mtime for entry in _folders(self._root)}
            for path, facts in _files(self._root):
                newest[str(path.parent)] = max(newest.get(str(path.parent), 0.0), facts.st_mtime)
        for folder, used in newest.items():
            if folder != str(self._folder) and time.time() - used > _OTHER_ENGINE_MAX_AGE_SECONDS:
                for path, _ in _files(self._root, only=folder):
                    path.unlink(missing_ok=True)
                # Whatever else lies there is not ours, and keeps its folder.
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()

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


def _folders(root: Path) -> list[os.DirEntry[str]]:
    try:
        return [entry for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _files(root: Path, *, only: str | None = None) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the regular files two levels below `root`, or of one folder there, never through a link."""
    for folder in _folders(root):
        if only is not None and folder.path != only:
            continue
        # Another process may remove the folder, or a file of it, meanwhile.
        with contextlib.suppress(FileNotFoundError):
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
def _locked(folder: int, how: int) -> Iterator[None]:
    """Hold a lock of the folder; nobody holds one for longer than it takes to open, rename or remove two files."""
    fcntl.flock(folder, how)
    try:
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)


@contextlib.contextmanager
def _drafts(folder: int, *names: str) -> Iterator[list[int]]:
    """Yield new files that take the places of `names`, all at once, when the block ends without an error, and vanish otherwise."""
    drafts = [f"{_DRAFT_PREFIX}{secrets.token_hex(8)}" for _ in names]
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptors: list[int] = []
    try:
        try:
            for draft in drafts:
                descriptors.append(os.open(draft, flags, 0o600, dir_fd=folder))  # noqa: PERF401 - those opened before one fails are closed
            yield descriptors
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        with _locked(folder, fcntl.LOCK_EX):
            for draft, name in zip(drafts, names, strict=True):
                os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        for draft in drafts:
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=folder)
        raise
