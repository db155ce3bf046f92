"""A bundle store in a folder of this machine: for development, tests and installations of one host.

Files are 0600 in folders 0700. An object appears in one step: it is written to a temporary file that nobody else can name,
flushed to disk, and linked under its key, which fails if the key is taken. Folders and files are opened one path segment at a time
without following links, so a link planted in the tree cannot lead out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO

from registry.bundles.store import CHUNK_BYTES, ObjectInfo, ObjectNotFoundError, check_key, too_large, unavailable

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY_PREFIX = ".tmp-"
"""No key can begin with a dot, so a temporary file never has the name of an object."""


class LocalBundleStore:
    """A `BundleStore` in a folder.

    Args:
        root: the folder; made (0700) when the first object is written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put_if_absent(self, key: str, source: Path | bytes, *, content_type: str) -> bool:
        """See `BundleStore`. `content_type` is not kept: a folder has no place for it."""
        del content_type
        check_key(key)
        try:
            return await asyncio.to_thread(self._put, key, source)
        except OSError as exc:
            raise unavailable(str(exc)) from exc

    def open(self, key: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See `BundleStore`."""
        return self._opened(check_key(key))

    async def read(self, key: str, max_bytes: int) -> bytes:
        """See `BundleStore`."""
        check_key(key)
        with await asyncio.to_thread(self._open_file, key) as file:
            try:
                data = await asyncio.to_thread(file.read, max_bytes + 1)
            except OSError as exc:
                raise unavailable(str(exc)) from exc
        if len(data) > max_bytes:
            raise too_large(key, max_bytes)
        return data

    async def stat(self, key: str) -> ObjectInfo | None:
        """See `BundleStore`."""
        check_key(key)
        try:
            with await asyncio.to_thread(self._open_file, key) as file:
                return ObjectInfo(key=key, size=os.fstat(file.fileno()).st_size)
        except ObjectNotFoundError:
            return None

    async def delete(self, key: str) -> None:
        """See `BundleStore`."""
        check_key(key)
        try:
            await asyncio.to_thread(self._delete, key)
        except OSError as exc:
            raise unavailable(str(exc)) from exc

    async def aclose(self) -> None:
        """See `BundleStore`. There is nothing to release."""

    @contextlib.asynccontextmanager
    async def _opened(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        with await asyncio.to_thread(self._open_file, key) as file:
            yield _chunks(file)

    def _put(self, key: str, source: Path | bytes) -> bool:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        *folders, name = key.split("/")
        with _walk(self._root, folders, create=True) as folder:
            if _exists(folder, name):
                return False
            temporary = _TEMPORARY_PREFIX + secrets.token_hex(16)
            try:
                _write(folder, temporary, source)
                # SECURITY: a link never replaces; a rename would. Of two writers exactly one creates the object.
                os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                return False
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
            os.fsync(folder)
        return True

    def _open_file(self, key: str) -> BinaryIO:
        *folders, name = key.split("/")
        try:
            with _walk(self._root, folders, create=False) as folder:
                descriptor = os.open(name, _READ, dir_fd=folder)
        except FileNotFoundError as exc:
            raise ObjectNotFoundError(key) from exc
        except OSError as exc:
            raise unavailable(str(exc)) from exc
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ObjectNotFoundError(key)
        return os.fdopen(descriptor, "rb")

    def _delete(self, key: str) -> None:
        *folders, name = key.split("/")
        with contextlib.suppress(FileNotFoundError), _walk(self._root, folders, create=False) as folder:
            os.unlink(name, dir_fd=folder)
            os.fsync(folder)


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while True:
        try:
            chunk = await asyncio.to_thread(file.read, CHUNK_BYTES)
        except OSError as exc:
            raise unavailable(str(exc)) from exc
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _walk(root: Path, folders: list[str], *, create: bool) -> Iterator[int]:
    """Open the folder `folders` below `root` without following a link; with `create`, make what is missing."""
    # The operator's own path to the root may hold links; below it nothing may.
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in folders:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=descriptor)
                    os.fsync(descriptor)
            inner = os.open(name, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _exists(folder: int, name: str) -> bool:
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise OSError(errno.EEXIST, "something that is no regular file has the name of an object", name)
    return True


def _write(folder: int, name: str, source: Path | bytes) -> None:
    descriptor = os.open(name, _CREATE, 0o600, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as target:
        if isinstance(source, bytes):
            target.write(source)
        else:
            with source.open("rb") as content:
                shutil.copyfileobj(content, target, CHUNK_BYTES)
        target.flush()
        os.fsync(target.fileno())
