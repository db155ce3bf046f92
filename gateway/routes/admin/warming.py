"""Has the daemon compile what was just published or installed, so that no user waits for a compiler."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from gateway.routes.admin.models import Warmth
from registry.domain.errors import RefusalError

_MAX_RUNNING = 64
_log = structlog.get_logger(__name__)


class Warms(Protocol):
    """The daemon's Warm."""

    async def warm(self, content_hash: str) -> object:
        """Verify and compile.

        Raises:
            RefusalError: the daemon's.
        """


class Warmer:
    """Warms, waits a little for it, and lets it go on in the background. Never fails: what failed to warm is compiled at its first call.

    Args:
        runner: the daemon.
        wait_seconds: how long a request waits for the compiler.
    """

    def __init__(self, runner: Warms, *, wait_seconds: float = 20) -> None:
        self._runner = runner
        self._wait_seconds = wait_seconds
        self._running: set[asyncio.Task[Warmth]] = set()

    async def warm(self, content_hash: str) -> Warmth:
        """Return how ready the content is."""
        if len(self._running) >= _MAX_RUNNING:
            return "failed"
        task = asyncio.create_task(self._warm(content_hash))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        done, _ = await asyncio.wait({task}, timeout=self._wait_seconds)
        return task.result() if done else "pending"

    async def aclose(self) -> None:
        """Give up what still runs."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _warm(self, content_hash: str) -> Warmth:
        try:
            await self._runner.warm(content_hash)
        except RefusalError as refusal:
            _log.warning("not_warmed", content_hash=content_hash, reason=refusal.reason, detail=refusal.public_detail)
            return "failed"
        return "ready"
