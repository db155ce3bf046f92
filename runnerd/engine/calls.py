"""The state of a running call, as the host's callbacks see it: what it may do, what it has used, whether it must end.

Callbacks run on the thread of their guest, so the call is found through the thread (`current`). What ends a call is kept here as a `Stop`
and never travels through the engine (RUNTIME §4.1).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from runnerd.capabilities.catalog import HostFunction
from runnerd.engine.journal import Journal
from runnerd.engine.limits import InvocationLimits
from runnerd.engine.outcomes import InternalError, LimitExceeded, LimitKind, Stop
from runnerd.engine.profile import MAX_TICKS_AHEAD, TICK_SECONDS


class StopCallError(Exception):
    """Unwinds a host callback so that the guest ends; why is in the call's `stop`."""


class HostPort(Protocol):
    """Answers brokered host calls."""

    def call(self, function: HostFunction, arguments: Sequence[object], *, timeout_seconds: float) -> tuple[object, str | None]:
        """Return (value, None) or (None, error case).

        Raises:
            TimeoutError: no answer in time.
            InterruptedError: the call was cancelled meanwhile.
            GuestSizeError: the arguments are more than one host call carries.
            ConnectionError: nobody answers any more, or the answer makes no sense.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestContext:
    """What context.get-context answers, and the head of the execute-request."""

    request_id: str
    tenant_id: str
    extension_id: str
    install_id: str
    version_id: str

    def as_value(self) -> Mapping[str, object]:
        """Return the record `context-data`; what is empty is absent."""
        return {
            "request_id": self.request_id or None,
            "tenant_id": self.tenant_id,
            "extension_id": self.extension_id,
            "install_id": self.install_id or None,
            "version_id": self.version_id or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRequest:
    """The request for a guest, as validated by the daemon."""

    method: str
    url: str
    headers: Sequence[tuple[str, str]]
    body: bytes | None


def _nothing(_capability: str) -> None:
    """Tell nobody."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One running call."""

    context: GuestContext
    limits: InvocationLimits
    capabilities: frozenset[str]
    journal: Journal
    port: HostPort
    started: float = field(default_factory=time.monotonic)
    """Monotonic time from which the wall time counts."""
    stop: Stop | None = None
    host_calls: int = 0
    large_values: bool = False
    """Whether large bodies crossed: their conversion touches memory that is not the guest's."""
    peak_memory_bytes: int | None = None
    """What the bridge measured; exact. None where it did not run, or the guest did not return."""
    denied: set[str] = field(default_factory=set)
    """Capabilities that were answered "denied" here."""
    on_denied: Callable[[str], None] = _nothing
    """Told each of them, once."""
    resources: dict[int, object] = field(default_factory=dict)
    """Host resources of the guest, by representation."""
    next_resource: int = 1
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _cpu_started: float = 0.0

    @property
    def deadline(self) -> float:
        """Monotonic time at which the wall time is used up."""
        return self.started + self.limits.wall_seconds

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody asked for its end."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask for its end. Any thread; waits end at once, a guest at its next epoch (see `Ticker.hurry`)."""
        self._cancelled.set()

    def deny(self, capability: str) -> None:
        """Note that a capability was called and is not in force."""
        if capability not in self.denied:
            self.denied.add(capability)
            self.on_denied(capability)

    def enter(self) -> None:
        """Begin counting CPU time, on the thread that runs the guest."""
        self._cpu_started = time.thread_time()

    def cpu_seconds(self) -> float:
        """CPU time of the guest's thread so far. On that thread only."""
        return time.thread_time() - self._cpu_started

    def end(self, stop: Stop) -> NoReturn:
        """End the guest for this reason; the first reason counts."""
        if self.stop is None:
            self.stop = stop
        raise StopCallError

    def check(self) -> int:
        """Decide whether the guest may go on; return the ticks until it must ask again.

        Raises:
            StopCallError: it may not.
        """
        if self.is_cancelled:
            self.end(InternalError(message="cancelled"))
        now = time.monotonic()
        if now >= self.deadline:
            self.end(self.wall_time_exceeded(now))
        cpu = self.cpu_seconds()
        if cpu >= self.limits.cpu_seconds:
            self.end(
                LimitExceeded(limit=LimitKind.CPU_TIME, used=int(cpu * 1e3), allowed=round(self.limits.cpu_seconds * 1e3)),
            )
        # CPU time cannot pass faster than wall time, so neither limit can be reached before this.
        remaining = min(self.deadline - now, self.limits.cpu_seconds - cpu)
        return min(int(remaining / TICK_SECONDS) + 1, MAX_TICKS_AHEAD)

    def wall_time_exceeded(self, now: float) -> LimitExceeded:
        """Return the outcome of a call whose wall time is used up."""
        used, allowed = int((now - self.started) * 1e3), round(self.limits.wall_seconds * 1e3)
        return LimitExceeded(limit=LimitKind.WALL_TIME, used=max(used, allowed), allowed=allowed)

    def remaining_seconds(self) -> float:
        """Wall time left.

        Raises:
            StopCallError: none is, or the call was cancelled.
        """
        if self.is_cancelled:
            self.end(InternalError(message="cancelled"))
        now = time.monotonic()
        if now >= self.deadline:
            self.end(self.wall_time_exceeded(now))
        return self.deadline - now

    def wait(self, seconds: float) -> None:
        """Let the guest wait, at most until its deadline; the thread gives up the interpreter meanwhile.

        Raises:
            StopCallError: the deadline came first, or the call was cancelled.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._cancelled.wait(min(left, self.remaining_seconds()))
        self.remaining_seconds()


_thread = threading.local()


def current() -> Call:
    """Return the call that this thread runs.

    Raises:
        RuntimeError: it runs none.
    """
    call: Call | None = getattr(_thread, "call", None)
    if call is None:
        message = "no call runs on this thread"
        raise RuntimeError(message)
    return call


def set_current(call: Call | None) -> None:
    """Say which call this thread runs now."""
    _thread.call = call
