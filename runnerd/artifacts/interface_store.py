"""The files of interfaces on disk, under the names of their own digests: `<folder>/<two digits>/<sha256>`, read-only.

Beside them lies one signed index for each bundle, `<folder>/index/<hexadecimal digits of the bundle>.json`. Attacks it stops (T31):
a file altered, replaced or made a link between verification and use, and an index that gives one extension's page another's script.
Files are written elsewhere first and get their names only once the whole archive was found genuine; what is found on disk later is
hashed again before its index counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Self

from registry.domain.digests import ContentHash, from_hex, hex_of
from registry.private_files import replace_private_file
from runnerd.artifacts.records import MAX_INTERFACE_RECORD_BYTES
from runnerd.artifacts.regular_files import open_regular
from runnerd.artifacts.sealed import digest_of, read_all

_INDEX = "index"
_DRAFTS = ".drafts"
_DRAFT_MAX_AGE_SECONDS = 3600
_FILE_MODE = 0o444
_FOLDER_MODE = 0o755
"""Interfaces are no secret; the assets child reads them, perhaps as another user. Above them lies the cache folder, which is 0700."""


class InterfaceDraft:
    """The files of one bundle while its archive is being read. Used as a context: what is not committed vanishes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: BinaryIO | None = None
        self._count = 0
        self._written: dict[str, Path] = {}

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700, parents=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            self._open.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def begin(self) -> Callable[[bytes], object]:
        """Start a file; return what takes its bytes."""
        path = self._folder / str(self._count)
        self._open = path.open("xb")
        return self._open.write

    def end(self, sha256: str) -> None:
        """Finish the file begun last; its digest names it from here on."""
        if self._open is None:
            message = "no file was begun"
            raise RuntimeError(message)
        os.fchmod(self._open.fileno(), _FILE_MODE)
        self._open.close()
        self._open = None
        self._written[sha256] = self._folder / str(self._count)
        self._count += 1

    @property
    def written(self) -> Mapping[str, Path]:
        """Digest → where the file lies for now."""
        return self._written


class InterfaceStore:
    """The folder of interface files. All methods block on the disk: call them in a thread."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def new_draft(self) -> InterfaceDraft:
        """Return a place for the files of one bundle."""
        return InterfaceDraft(self.folder / _DRAFTS / secrets.token_hex(8))

    def commit(self, content_hash: ContentHash, draft: InterfaceDraft, index: bytes) -> frozenset[ContentHash]:
        """Give the files of a draft their names, and the bundle its index.

        What lies under such a name already is replaced: it may have been altered.

        Returns:
            The bundles whose interfaces were removed to make room; the one committed is never among them.

        Raises:
            OSError: the disk takes no more.
        """
        with self._lock:
            # The index comes first: it keeps another process from removing these files as nobody's, and counts only if they match.
            self._write_index(content_hash, index)
            for sha256, path in draft.written.items():
                target = self.path_of(sha256)
                _make_folder(target.parent)
                if target.is_dir() and not target.is_symlink():
                    # Nothing of ours makes a folder here, and a file cannot replace one.
                    shutil.rmtree(target)
                path.replace(target)
            return self._make_room(content_hash)

    def find_index(self, content_hash: ContentHash) -> bytes | None:
        """Return the unverified index of a bundle, or None."""
        try:
            with open_regular(self._index_path(content_hash)) as file:
                if file.size > MAX_INTERFACE_RECORD_BYTES:
                    return None
                # The time of the last use decides which interface makes room.
                os.utime(file.descriptor)
                return read_all(file.descriptor, size=file.size)
        except OSError:
            return None

    def has_index(self, content_hash: ContentHash) -> bool:
        """Tell whether the bundle has an index still; another process may have removed it to make room."""
        return self._index_path(content_hash).is_file()

    def find_damaged(self, files: Iterable[tuple[str, int]]) -> str | None:
        """Hash every file; return the digest of the first that is missing, a link, or not what its name says."""
        for sha256, size in dict(files).items():
            if not self._is_intact(sha256, size):
                return sha256
        return None

    def discard(self, content_hash: ContentHash) -> None:
        """Forget the index of a bundle."""
        self._index_path(content_hash).unlink(missing_ok=True)

    def path_of(self, sha256: str) -> Path:
        """Return where the file of this digest lies."""
        return self.folder / sha256[:2] / sha256

    def _index_path(self, content_hash: ContentHash) -> Path:
        return self.folder / _INDEX / f"{hex_of(content_hash)}.json"

    def _is_intact(self, sha256: str, size: int) -> bool:
        try:
            with open_regular(self.path_of(sha256)) as file:
                return file.size == size and digest_of(file.descriptor) == sha256
        except OSError:
            return False

    def _write_index(self, content_hash: ContentHash, index: bytes) -> None:
        path = self._index_path(content_hash)
        _make_folder(path.parent)
        replace_private_file(path, index)

    def _make_room(self, keep: ContentHash) -> frozenset[ContentHash]:
        """Remove the interfaces not used for longest until the files fit, then the files that no index names any more."""
        self._remove_old_drafts()
        blobs = self._list_blobs()
        total = sum(blobs.values())
        if total <= self._max_bytes:
            return frozenset()
        indexes = sorted(self._list_indexes(), key=lambda path: path.stat().st_mtime)
        named = {path: _digests_of(path) & blobs.keys() for path in indexes}
        removed: set[ContentHash] = set()
        for path in indexes:
            wanted = set[str]().union(*named.values())
            if sum(blobs[sha256] for sha256 in wanted) <= self._max_bytes:
                break
            with contextlib.suppress(ValueError):
                if from_hex(path.stem) == keep:
                    continue
                removed.add(from_hex(path.stem))
            path.unlink(missing_ok=True)
            del named[path]
        wanted = set[str]().union(*named.values())
        for sha256 in blobs.keys() - wanted:
            self.path_of(sha256).unlink(missing_ok=True)
        return frozenset(removed)

    def _list_blobs(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            with os.scandir(folder) as entries:
                for entry in entries:
                    sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
        return sizes

    def _list_indexes(self) -> list[Path]:
        return list((self.folder / _INDEX).glob("*.json"))

    def _remove_old_drafts(self) -> None:
        for draft in (self.folder / _DRAFTS).glob("*"):
            with contextlib.suppress(OSError):
                if time.time() - draft.stat().st_mtime > _DRAFT_MAX_AGE_SECONDS:
                    shutil.rmtree(draft, ignore_errors=True)


def _make_folder(path: Path) -> None:
    path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)


def _digests_of(path: Path) -> frozenset[str]:
    """Read which files an index names. Unverified: it decides only what stays in the cache."""
    try:
        files = json.loads(path.read_bytes())["body"]["files"]
        return frozenset(str(file[0]) for file in files.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return frozenset()
