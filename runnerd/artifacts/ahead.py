"""Checks the artifacts on disk ahead of their first call, once the daemon serves: last used first, as many as memory has room for.

A start never waits for this, and traffic hardly notices it: it takes one artifact at a time, then rests for as long as that took, and for
many times as long while calls run. The thread that copies and hashes keeps its priority: one that was put behind the workers could hold the
interpreter while it waits for a processor, and with it every call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from registry.domain.errors import RefusalError
from runnerd.artifacts.cache import CacheEntry

_LOG = logging.getLogger(__name__)
_REST_IDLE = 1.0
_REST_BUSY = 19.0
"""One part in twenty of one processor."""


class Checkable(Protocol):
    """What is asked of the loader."""

    async def list_cached(self) -> tuple[CacheEntry, ...]:
        """List what is on disk, last used first."""
        ...

    async def check(self, entry: CacheEntry) -> bool:
        """Verify one and keep it in memory; False where there is no room."""
        ...


class AheadChecker:
    """Runs in the background from `start` until it is through, or closed. Belongs to one event loop.

    Args:
        loader: checks.
        is_busy: whether calls run now.
    """

    def __init__(self, loader: Checkable, *, is_busy: Callable[[], bool]) -> None:
        self._loader = loader
        self._is_busy = is_busy
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        began = time.monotonic()
        checked = refused = 0
        for entry in await self._list():
            started = time.monotonic()
            try:
                if not await self._loader.check(entry):
                    break
                checked += 1
            except RefusalError as refusal:
                # Denied, withdrawn, or no longer signed by who may sign: nothing a call could use. Where the registry is silent, the
                # first call asks it again.
                refused += 1
                _LOG.info("artifact not checked ahead: %s", refusal.reason, extra={"content_hash": entry.content_hash})
            except OSError as error:
                # No descriptor, no memory, a disk that fails: of this one or of this moment. The next may do.
                refused += 1
                _LOG.warning("artifact not checked ahead: %s", error, extra={"content_hash": entry.content_hash})
            rest = _REST_BUSY if self._is_busy() else _REST_IDLE
            await asyncio.sleep(rest * (time.monotonic() - started))
        seconds = round(time.monotonic() - began, 3)
        _LOG.info("artifacts checked ahead", extra={"checked": checked, "refused": refused, "seconds": seconds})

    async def _list(self) -> tuple[CacheEntry, ...]:
        try:
            return await self._loader.list_cached()
        except OSError as error:
            _LOG.warning("no artifact is checked ahead: %s", error)
            return ()
