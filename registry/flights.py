"""Work that many callers want at once is done once, and goes on when those who wait give up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class StillRunningError(Exception):
    """The work was not done in the time that the caller wanted to wait; it goes on."""


class SingleFlight(Generic[K, V]):
    """Runs at most one task for a key. Belongs to one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, V]], *, wait_seconds: float | None = None) -> V:
        """Join the task of `key`, or start it with `work`, and return its result or raise its error.

        Args:
            key: what the work is for.
            work: makes the coroutine; called only where no task runs.
            wait_seconds: how long to wait; None waits as long as it takes.

        Raises:
            StillRunningError: the time is over.
        """
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(work())
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._land(key, done))
        # Not wait_for: that cancels what others wait for, too.
        done, _ = await asyncio.wait({task}, timeout=wait_seconds)
        if not done:
            raise StillRunningError
        return task.result()

    async def aclose(self) -> None:
        """Cancel what runs and wait for its end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _land(self, key: K, task: asyncio.Task[V]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            # Looked at here, so that a failure nobody waited for is not reported as forgotten.
            task.exception()
