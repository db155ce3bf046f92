"""Keeps one child process alive: waits for it to come up, starts it again when it dies, stops it.

The attack it stops: a child that is made to die again and again costs a start each time, so starts come at growing intervals; one that
does not come up, or does not leave when asked, is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import structlog

from runnerd.children.process import ChildProcess

START_TIMEOUT_SECONDS = 20.0
STOP_GRACE_SECONDS = 8.0
"""Longer than a child lets running answers take."""
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_LAST_SECONDS = 5.0
STABLE_SECONDS = 60.0
"""A child that lived this long was healthy: the next restart is quick again."""

_log = structlog.get_logger(__name__)


class ChildStartError(Exception):
    """The child did not come up; the text says why."""


class ChannelEndedError(Exception):
    """The channel to a child ended before the child was ready."""


class ControlChannel(Protocol):
    """The daemon's end of what it says to a child."""

    def close(self) -> None:
        """End it, which asks the child to end."""


@dataclass(slots=True, kw_only=True)
class Child:
    """One running child."""

    process: ChildProcess
    channel: ControlChannel
    ready: asyncio.Future[Any]
    """Resolved with what the child says once it is hardened and works."""
    started_at: float = field(default_factory=time.monotonic)

    def gone(self) -> None:
        """End a child whose channel ended or that broke the protocol."""
        self.channel.close()
        if not self.ready.done():
            # Whoever waits for it to come up stops it, and says with which status it ended.
            self.ready.set_exception(ChannelEndedError("the control channel ended"))
        else:
            self.process.kill()

    def release(self) -> None:
        """Let go of a child that has ended."""
        self.channel.close()
        if not self.ready.done():
            self.ready.cancel()

    async def wait_ready(self, name: str) -> Any:
        """Return what the child says when it is up.

        Raises:
            ChildStartError: it did not come up, and was stopped.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(self.ready), START_TIMEOUT_SECONDS)
        except (TimeoutError, ChannelEndedError) as exc:
            await self.stop()
            message = f"the {name} child did not come up (exit status {self.process.returncode})"
            raise ChildStartError(message) from exc
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close the channel, which asks the child to end; kill it where it does not."""
        self.release()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_GRACE_SECONDS)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


C = TypeVar("C", bound=Child)


class Keeper(Generic[C]):
    """Keeps a child.

    Args:
        name: for the log.
        spawn: starts one and returns it when it is up; raises ChildStartError or OSError.
    """

    def __init__(self, name: str, spawn: Callable[[], Awaitable[C]]) -> None:
        self._name = name
        self._spawn = spawn
        self._task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self.child: C | None = None
        """The child that runs now."""
        self.restarts = 0
        """Children that died."""

    @property
    def is_up(self) -> bool:
        """Whether a child is up."""
        return self.child is not None and self.child.ready.done() and self.child.process.returncode is None

    async def start(self) -> None:
        """Start the first child and wait until it is up.

        Raises:
            ChildStartError: it did not come up.
        """
        self._has(await self._spawn())
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def wait_up(self) -> C:
        """Return the child, once there is one."""
        while self.child is None:
            await self._up.wait()
        return self.child

    def _has(self, child: C) -> None:
        self.child = child
        self._up.set()

    async def aclose(self) -> None:
        """Leave no process behind."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self.child is not None:
            await self.child.stop()
            self._up.clear()
            self.child = None

    async def _keep(self) -> None:
        pause = BACKOFF_FIRST_SECONDS
        while True:
            child = self.child
            if child is not None:
                status = await child.process.wait()
                child.release()
                self._up.clear()
                self.child = None
                self.restarts += 1
                pause = BACKOFF_FIRST_SECONDS if time.monotonic() - child.started_at > STABLE_SECONDS else pause
                _log.warning(f"{self._name} child died", status=status, restart_in_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_LAST_SECONDS)
            try:
                self._has(await self._spawn())
            except (ChildStartError, OSError) as exc:
                _log.error(f"{self._name} child does not start", error=str(exc), retry_in_seconds=pause)


def steps_of(reported: object) -> dict[str, bool]:
    """Return a child's report of its hardening, whatever it sent: step → whether it holds."""
    return {str(name)[:40]: applied is True for name, applied in reported.items()} if isinstance(reported, dict) else {}
