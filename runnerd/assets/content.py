"""Files that are served only as they were verified, whatever happens to the disk.

The attack this stops (T31): a file that is altered, replaced or truncated between the check and the answer. A file is hashed whole when
it is first opened, and the digest of each chunk is kept from that same reading; afterwards every chunk is checked again in the very
buffer that is sent. So no byte leaves that is not a byte of the verified file, at 32 bytes of memory for every 256 KiB.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator

from registry.domain.errors import Reason, RefusalError
from runnerd.assets.index import FileFacts

CHUNK_BYTES = 256 * 1024
MAX_OPEN_FILES = 128
"""Descriptors kept open; the least recently used is closed when its last reader is done."""


class VerifiedFile:
    """An open file whose bytes matched their digest when it was opened, and are compared again whenever they are read."""

    def __init__(self, descriptor: int, facts: FileFacts, chunk_digests: tuple[bytes, ...]) -> None:
        self.facts = facts
        self._descriptor = descriptor
        self._chunk_digests = chunk_digests
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    async def verify(cls, descriptor: int, facts: FileFacts) -> VerifiedFile:
        """Hash the file behind `descriptor`, which is owned from now on, and return it if it is what `facts` say.

        Gives way to other requests after each chunk.

        Raises:
            RefusalError: BUNDLE_CORRUPT where it is not.
        """
        whole = hashlib.sha256()
        chunk_digests: list[bytes] = []
        try:
            for offset in range(0, facts.size, CHUNK_BYTES):
                data = _read(descriptor, offset, min(CHUNK_BYTES, facts.size - offset))
                whole.update(data)
                chunk_digests.append(hashlib.sha256(data).digest())
                await asyncio.sleep(0)
            is_whole = whole.hexdigest() == facts.sha256 and not os.pread(descriptor, 1, facts.size)
        except BaseException:
            os.close(descriptor)
            raise
        if not is_whole:
            os.close(descriptor)
            raise _corrupt()
        return cls(descriptor, facts, tuple(chunk_digests))

    def chunks(self) -> Iterator[bytes]:
        """Yield the file's bytes, each chunk compared with its digest before it is handed out.

        Raises:
            RefusalError: BUNDLE_CORRUPT where the file is no longer what was verified.
        """
        for number, digest in enumerate(self._chunk_digests):
            offset = number * CHUNK_BYTES
            data = _read(self._descriptor, offset, min(CHUNK_BYTES, self.facts.size - offset))
            # SECURITY: the buffer that is compared is the buffer that is sent; reading again would undo the check.
            if hashlib.sha256(data).digest() != digest:
                raise _corrupt()
            yield data


class OpenFiles:
    """The files that are open now: bounded, least recently used closed first, each opened and verified once at a time."""

    def __init__(self, *, limit: int = MAX_OPEN_FILES) -> None:
        self._limit = limit
        self._files: OrderedDict[str, VerifiedFile] = OrderedDict()
        self._opening: dict[str, asyncio.Task[VerifiedFile]] = {}

    async def get(self, facts: FileFacts, fetch: Callable[[], Awaitable[int]]) -> VerifiedFile:
        """Return the file, from what is open or through `fetch`, which returns a descriptor.

        Raises:
            RefusalError: BUNDLE_CORRUPT where the file is not what `facts` say, or what `fetch` raised.
        """
        found = self._files.get(facts.sha256)
        if found is not None:
            self._files.move_to_end(facts.sha256)
            return found
        task = self._opening.get(facts.sha256)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._open(facts, fetch))
            self._opening[facts.sha256] = task
            task.add_done_callback(lambda done: self._opened(facts.sha256, done))
        # Shielded: a reader that goes away must not fail the others that wait for the same file.
        return await asyncio.shield(task)

    def forget(self, facts: FileFacts) -> None:
        """Drop a file that turned out to be altered; it is verified anew when asked for again."""
        self._files.pop(facts.sha256, None)

    def _opened(self, digest: str, done: asyncio.Task[VerifiedFile]) -> None:
        self._opening.pop(digest, None)
        if not done.cancelled():
            done.exception()  # Seen here, so that nothing is logged where every reader has gone away.

    async def _open(self, facts: FileFacts, fetch: Callable[[], Awaitable[int]]) -> VerifiedFile:
        file = await VerifiedFile.verify(await fetch(), facts)
        self._files[facts.sha256] = file
        while len(self._files) > self._limit:
            self._files.popitem(last=False)
        return file


def _read(descriptor: int, offset: int, size: int) -> bytes:
    """Read exactly `size` bytes; fewer, or an error of the disk, mean that the file is not what was verified."""
    parts: list[bytes] = []
    try:
        while size and (part := os.pread(descriptor, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
    except OSError as exc:
        raise _corrupt() from exc
    if size:
        raise _corrupt()
    return b"".join(parts)


def _corrupt() -> RefusalError:
    return RefusalError(Reason.BUNDLE_CORRUPT, "The stored file is not the one that was verified; ask the operator to reload the bundle.")
