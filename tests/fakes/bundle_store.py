"""A bundle store in memory. The contract suite runs on it, so it can stand for the real ones.

store.fail_on = "put_if_absent"      that method answers BUNDLE_UNAVAILABLE from now on
store.objects                        key -> bytes
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from registry.bundles.store import CHUNK_BYTES, ObjectInfo, ObjectNotFoundError, check_key, too_large, unavailable


class MemoryBundleStore:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.fail_on: str | None = None
        self.fail_key = ""
        """With `fail_on`: only keys that end with this fail."""
        self.closed = False

    async def put_if_absent(self, key: str, source: Path | bytes, *, content_type: str) -> bool:
        check_key(key)
        self._maybe_fail("put_if_absent", key)
        if key in self.objects:
            return False
        self.objects[key] = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
        return True

    def open(self, key: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        check_key(key)
        return self._opened(key)

    @asynccontextmanager
    async def _opened(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        self._maybe_fail("open", key)
        if key not in self.objects:
            raise ObjectNotFoundError(key)
        yield self._chunks(self.objects[key])

    async def _chunks(self, data: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(data), CHUNK_BYTES):
            yield data[at : at + CHUNK_BYTES]

    async def read(self, key: str, max_bytes: int) -> bytes:
        check_key(key)
        self._maybe_fail("read", key)
        if key not in self.objects:
            raise ObjectNotFoundError(key)
        if len(self.objects[key]) > max_bytes:
            raise too_large(key, max_bytes)
        return self.objects[key]

    async def stat(self, key: str) -> ObjectInfo | None:
        check_key(key)
        self._maybe_fail("stat", key)
        return ObjectInfo(key=key, size=len(self.objects[key])) if key in self.objects else None

    async def delete(self, key: str) -> None:
        check_key(key)
        self._maybe_fail("delete", key)
        self.objects.pop(key, None)

    async def aclose(self) -> None:
        self.closed = True

    def _maybe_fail(self, method: str, key: str) -> None:
        if self.fail_on == method and key.endswith(self.fail_key):
            what = "told to fail"
            raise unavailable(what)
