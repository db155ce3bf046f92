"""One worker, as the daemon sees it: its life from Hello to exit, the calls it holds, and the answers to their host calls.

Who dies and why: a violation of the protocol kills the worker at once; a call that still runs `grace_seconds` after its deadline or
cancellation does too, after its neighbours (all of the same tenant) had up to `bystander_seconds` to end (the backstop). Calls that a
dead worker held end with `WorkerDiedError`, which says whether they had started; nobody retries a started one (T28).
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from extrunner.worker.v1 import worker_pb2
from registry.domain.errors import Reason, RefusalError
from runnerd.capabilities.grants import REQUEST_BYTES, RESPONSE_BYTES
from runnerd.dispatch.breaker import TenantVersion
from runnerd.dispatch.calls import CallTable, FinishedCall, HostCallRequested, OpenCall, ViolationError
from runnerd.dispatch.channel import ChannelClosedError, FrameChannel
from runnerd.dispatch.components import MappedComponents
from runnerd.dispatch.host_calls import HostCallDesk
from runnerd.dispatch.memory import FOR_THE_BUDGET
from runnerd.dispatch.outcome import Outcome, Usage
from runnerd.dispatch.start import Invocation, build_start
from runnerd.dispatch.verdict import Measured, WorkerInternalError, judge, usage_of, wall_time_exceeded
from runnerd.worker.frames import NO_CALL, PROTOCOL_VERSION, Frame, FrameError, FrameKind, parse_message
from runnerd.worker.settings import EXIT_HARDENING

_log = structlog.get_logger(__name__)
MAX_SLOTS = 256
_NOBODYS_FAULT = frozenset({"zygote_died", FOR_THE_BUDGET})
_REPORT_SECONDS = 5.0
"""How long to wait, at most, to hear how a worker ended that ended by itself."""


class WorkerProcess(Protocol):
    """A forked worker (`runnerd.dispatch.zygote.ForkedWorker`)."""

    @property
    def sock(self) -> socket.socket:
        """The daemon's end of the socketpair."""

    @property
    def pid(self) -> int:
        """Process id."""

    @property
    def zygote_died(self) -> bool:
        """True where what made it has ended, and it with that."""

    def kill(self) -> None:
        """End it with SIGKILL; nothing where it has ended."""

    async def wait_exit(self) -> int:
        """Return its exit status, negative for a signal, when it has ended and was reaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """How the daemon deals with one worker."""

    build: str
    engine_fingerprint: str
    hello_seconds: float = 20.0
    grace_seconds: float = 0.5
    """How long after its deadline a call may still take to end."""
    bystander_seconds: float = 2.0
    stall_seconds: float = 10.0
    exit_seconds: float = 2.0
    max_components: int = 16
    """Components that one worker keeps mapped."""


class WorkerDiedError(Exception):
    """The worker ended while it held a call.

    Args:
        started: whether the call may have begun to run.
        had_host_calls: whether it had sent a host call.
    """

    def __init__(self, *, started: bool, had_host_calls: bool = False) -> None:
        super().__init__(f"the worker ended ({'while' if started else 'before'} the call ran)")
        self.started = started
        self.had_host_calls = had_host_calls


class UnusableWorkerError(Exception):
    """A new worker said something in its Hello that this daemon cannot work with, or nothing in time."""


class NotHardenedError(UnusableWorkerError):
    """A new worker lacks a mandatory step of hardening."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallReport:
    """How one call ended, for the executor."""

    outcome: Outcome
    usage: Usage


class WorkerConnection:
    """One worker. Made by the pool; belongs to one event loop.

    Args:
        process: the forked worker.
        desk: answers host calls.
        settings: times and bounds.
        on_change: called whenever a call has left or the worker has ended.
    """

    def __init__(
        self,
        process: WorkerProcess,
        *,
        desk: HostCallDesk,
        settings: ConnectionSettings,
        on_change: Callable[[WorkerConnection], None],
    ) -> None:
        self.pid = process.pid
        self.slots = 0
        self.hardening: Mapping[str, bool] = {}
        self.end_cause = ""
        """Why it ended: a cause of the metric `worker_restarts`; empty while it lives."""
        self.suspects: frozenset[TenantVersion] = frozenset()
        """Versions whose calls may have ended it, where nobody asked it to end."""
        self.key = ""
        """The isolation key (tenant) whose calls it holds now, or held last."""
        self.generation = 0
        """Which of the pool's generations it is of."""
        self.calls_started = 0
        self.idle_since = time.monotonic()
        self._process = process
        self._desk = desk
        self._settings = settings
        self._on_change = on_change
        self._table = CallTable()
        self._doomed = False
        self._hello: asyncio.Future[worker_pb2.Hello] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel = FrameChannel(
            process.sock,
            on_frame=self._on_frame,
            on_announced=self._on_announced,
            on_closed=self._on_closed,
            stall_seconds=settings.stall_seconds,
        )
        self._components = MappedComponents(self._channel, limit=settings.max_components)

    @property
    def in_flight(self) -> int:
        """Calls it holds, those that nobody waits for any more included."""
        return len(self._table)

    @property
    def orphans(self) -> int:
        """Calls it holds although nobody waits for them any more."""
        return sum(call.orphaned for call in self._table.calls)

    @property
    def is_usable(self) -> bool:
        """True where it takes new calls."""
        return self._channel.is_open and not self._doomed and self.slots > 0

    @property
    def is_orphaned(self) -> bool:
        """True where what made it has ended, as far as is known now: then it ends, too. Asks the kernel."""
        return self._process.zygote_died

    @property
    def has_ended(self) -> bool:
        """True once it was killed, has died or was retired, and `end_cause` says which."""
        return bool(self.end_cause)

    async def greet(self, *, mandatory_hardening: frozenset[str]) -> None:
        """Wait for its Hello and check it.

        Raises:
            NotHardenedError: it lacks a mandatory hardening step.
            UnusableWorkerError: it is of another build or engine, or does not answer.
        """
        try:
            async with asyncio.timeout(self._settings.hello_seconds):
                hello = await asyncio.shield(self._hello)
        except (TimeoutError, WorkerDiedError) as error:
            self.end("start_failed")
            if isinstance(error, WorkerDiedError) and await self._process.wait_exit() == EXIT_HARDENING:
                # It says why on the daemon's own standard error; it has no channel yet that would carry more.
                message = "a worker ended itself because a mandatory hardening step is not in force"
                raise NotHardenedError(message) from error
            message = "a worker ended before its Hello" if isinstance(error, WorkerDiedError) else "a worker did not say Hello in time"
            raise UnusableWorkerError(message) from error
        try:
            self._check(hello, mandatory_hardening)
        except UnusableWorkerError:
            self.end("start_failed")
            raise
        self.hardening = dict.fromkeys(hello.hardening_applied, True) | dict.fromkeys(hello.hardening_missing, False)
        self.slots = hello.slots

    def _check(self, hello: worker_pb2.Hello, mandatory_hardening: frozenset[str]) -> None:
        settings = self._settings
        if hello.protocol_version != PROTOCOL_VERSION or hello.build != settings.build:
            theirs = f"build {hello.build[:40]!r} and protocol {hello.protocol_version}"
            message = f"a worker of {theirs} under a daemon of build {settings.build!r}"
            raise UnusableWorkerError(message)
        if hello.engine_fingerprint != settings.engine_fingerprint:
            message = "a worker whose engine has another fingerprint than the daemon's artifacts"
            raise UnusableWorkerError(message)
        if not 1 <= hello.slots <= MAX_SLOTS:
            message = f"a worker with {hello.slots} slots"
            raise UnusableWorkerError(message)
        missing = mandatory_hardening - set(hello.hardening_applied)
        if missing:
            reasons = "; ".join(f"{step}: {hello.hardening_missing.get(step, 'not reported')[:200]}" for step in sorted(missing))
            message = f"mandatory hardening is not in force: {reasons}"
            raise NotHardenedError(message)

    async def run(self, invocation: Invocation) -> CallReport:
        """Run one call to its end. The caller has reserved a slot.

        Cancelling this cancels the guest.

        Raises:
            WorkerDiedError: the worker ended; see its fields.
            WorkerInternalError: the worker could not run the call.
            RefusalError: OVERLOADED: the worker did not take the call before its deadline.
        """
        call = self._table.open(
            grant=invocation.grant,
            limits=invocation.limits,
            deadline=invocation.deadline,
            place=invocation.place,
            notes=invocation.notes,
        )
        self.calls_started += 1
        began = time.monotonic()
        try:
            if not self._send_at_once(call, invocation):
                async with asyncio.timeout(call.deadline - began):
                    await self._send(call, invocation)
                began = time.monotonic()
            finished = await self._wait(call)
        except TimeoutError as error:
            # Nothing of it has left: whatever is in front of it, this worker takes too slowly.
            self._table.forget(call)
            raise RefusalError(Reason.OVERLOADED, "The worker did not take the call in time; try again in a moment.") from error
        except (ChannelClosedError, WorkerDiedError) as error:
            self._table.forget(call)
            raise WorkerDiedError(started=call.started, had_host_calls=call.host_calls > 0) from error
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        ended = time.monotonic()
        measured = Measured(
            wall_us=round((ended - began) * 1e6),
            queue_us=invocation.queue_us,
            host_calls=call.host_calls,
            egress_request_bytes=call.grant.used[REQUEST_BYTES],
            egress_response_bytes=call.grant.used[RESPONSE_BYTES],
            # A timer may be a fraction of a millisecond early; what was cancelled at its deadline was late all the same.
            late=finished is None or call.cancelled or ended > call.deadline,
        )
        try:
            return self._report(call, finished, measured)
        except WorkerInternalError:
            # Perhaps the component is not mapped there; the next call sends it again.
            self._components.forget(invocation.extension)
            raise

    def _report(self, call: OpenCall, finished: FinishedCall | None, measured: Measured) -> CallReport:
        if finished is None:
            outcome: Outcome = wall_time_exceeded(call.limits, measured.wall_us)
        else:
            try:
                outcome = judge(finished, call.limits, measured, hide=call.grant.revealed.hide)
            except ViolationError as error:
                self._violated(error, by=call)
                raise WorkerDiedError(started=True, had_host_calls=call.host_calls > 0) from error
        done = finished.done if finished is not None else None
        return CallReport(outcome=outcome, usage=usage_of(done, call.limits, measured))

    def _send_at_once(self, call: OpenCall, invocation: Invocation) -> bool:
        """Send a call whose component the worker has, where the channel is free; False where it has to wait for either."""
        component = self._components.ready(invocation.extension) if self._channel.is_free else None
        if component is None:
            return False
        payload = _start_of(call, invocation, component)
        call.started = True
        self._channel.send_at_once(FrameKind.START, call.call_id, payload, body=invocation.http.body)
        return True

    async def _send(self, call: OpenCall, invocation: Invocation) -> None:
        def leaving() -> None:
            call.started = True

        async with self._components.use(invocation.extension) as component:
            payload = _start_of(call, invocation, component)
            await self._channel.send(FrameKind.START, call.call_id, payload, body=invocation.http.body, on_sending=leaving)

    async def _wait(self, call: OpenCall) -> FinishedCall | None:
        """Return what the worker said, or None where it says nothing in time.

        The future itself is awaited, with a timer beside it: anything around it would cost more than the rest of the wait. Cancelling
        therefore cancels the future; see `_abandon`.
        """
        left = max(0.0, call.deadline - time.monotonic())
        call.timer = asyncio.get_running_loop().call_later(left, self._deadline_passed, call)
        try:
            return await call.finished
        finally:
            call.timer.cancel()

    def _deadline_passed(self, call: OpenCall) -> None:
        if not call.finished.done():
            self._cancel(call)
            call.timer = asyncio.get_running_loop().call_later(self._settings.grace_seconds, self._grace_passed, call)

    def _grace_passed(self, call: OpenCall) -> None:
        if not call.finished.done():
            call.orphaned = True
            self._start_backstop()
            call.finished.set_result(None)

    def _cancel(self, call: OpenCall) -> None:
        call.cancelled = True
        if call.outstanding is not None:
            call.outstanding.cancel()
            call.outstanding = None
        self._channel.send_now(FrameKind.CANCEL, call.call_id)

    def _abandon(self, call: OpenCall) -> None:
        """Nobody waits for the answer any more: end the guest, and see to it that it ends."""
        if call.finished.done() and not call.finished.cancelled():
            # Its result, or the worker's death, is nobody's business now.
            call.finished.exception()
            return
        # It may have ended between the cancellation and now.
        if not self._table.holds(call):
            return
        if not call.started:
            self._table.forget(call)
            return
        if call.finished.cancelled():
            # With whoever awaited it; the worker's answer still needs a place.
            call.finished = asyncio.get_running_loop().create_future()
        call.orphaned = True
        self._cancel(call)
        self._background(self._see_it_end(call))

    async def _see_it_end(self, call: OpenCall) -> None:
        await asyncio.wait({call.finished}, timeout=self._settings.grace_seconds)
        if not call.finished.done():
            self._start_backstop()
        elif not call.finished.cancelled():
            call.finished.exception()

    def _start_backstop(self) -> None:
        if not self._doomed:
            self._doomed = True
            self._background(self._backstop())

    async def _backstop(self) -> None:
        """Kill the worker; calls that are within their time get a little of it first."""
        _log.warning("worker_backstop", worker_pid=self.pid, calls=len(self._table))
        end = time.monotonic() + self._settings.bystander_seconds
        while any(not call.cancelled for call in self._table.calls) and (left := end - time.monotonic()) > 0:
            bystanders = {call.finished for call in self._table.calls if not call.cancelled}
            await asyncio.wait(bystanders, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        self.end("backstop")

    def _on_announced(self, kind: FrameKind, call_id: int, length: int) -> None:
        if not self._hello.done():
            _require_hello(kind, call_id)
        else:
            self._table.check(kind, call_id, length)

    def _on_frame(self, frame: Frame) -> None:
        if not self._hello.done():
            _require_hello(frame.kind, frame.call_id)
            self._hello.set_result(parse_message(worker_pb2.Hello, frame.payload))
            return
        event = self._table.on_frame(frame)
        if event is None:
            return
        if isinstance(event, HostCallRequested):
            event.call.outstanding = self._background(self._answer(event))
            return
        call = event.call
        if call.outstanding is not None:
            call.outstanding.cancel()
        if not call.finished.done():
            call.finished.set_result(event.finished)
        self._idle_or_not()
        self._on_change(self)

    async def _answer(self, asked: HostCallRequested) -> None:
        """Answer one host call, unless its call has ended meanwhile."""
        call = asked.call
        if call.place is not None:
            call.place.pause()
        try:
            payload = await self._desk.answer(asked)
        finally:
            if call.place is not None:
                call.place.resume()
        call.outstanding = None
        if not call.finished.done():
            with suppress(ChannelClosedError):
                await self._channel.send(FrameKind.HOST_REPLY, call.call_id, payload)

    def _violated(self, cause: Exception, *, by: OpenCall | None = None) -> None:
        _log.error("worker_violation", worker_pid=self.pid, detail=str(cause), isolation_key=self.key)
        self._desk.violation()
        self.end("violation", by=by)

    def _on_closed(self, cause: Exception | None) -> None:
        if isinstance(cause, FrameError):
            self._violated(cause)
        else:
            _log.warning("worker_exited", worker_pid=self.pid, calls=len(self._table))
            self._process.kill()
            self._background(self._ended_by_itself())

    async def _ended_by_itself(self) -> None:
        """Find out why, and end what it held.

        A worker that dies with its zygote is nobody's fault, and its socket may close before anything else is heard of that. The report of
        its end comes from a zygote that lives; where the zygote is gone, that is what is reported.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_REPORT_SECONDS):
                await self._process.wait_exit()
        self.end("zygote_died" if self._process.zygote_died else "exited")

    def end(self, cause: str, *, by: OpenCall | None = None) -> None:
        """Kill the worker now. Its calls end with WorkerDiedError. Nothing where it has ended.

        Args:
            cause: of the metric `worker_restarts`.
            by: the call that is to blame, where one is known.
        """
        if self.end_cause:
            return
        self.end_cause = cause
        self.suspects = self._suspects(cause, by)
        self._channel.close()
        self._process.kill()
        self._background(self._reap())
        self._fail_calls()
        self._on_change(self)

    def retire(self, cause: str) -> None:
        """Let an idle worker go: it reads an end of file and exits; it is killed where it does not."""
        if self.end_cause:
            return
        self.end_cause = cause
        self._channel.close()
        self._background(self._leave())
        self._fail_calls()
        self._on_change(self)

    def _suspects(self, cause: str, by: OpenCall | None) -> frozenset[TenantVersion]:
        """Say whose calls may have caused this end: known from the call, or else all that were running."""
        if cause in _NOBODYS_FAULT:
            return frozenset()
        if by is not None:
            calls: tuple[OpenCall, ...] = (by,)
        elif cause == "backstop":
            # The others had ended, or were within their time.
            calls = tuple(call for call in self._table.calls if call.cancelled)
        else:
            calls = self._table.calls
        return frozenset(TenantVersion(call.grant.tenant_id, call.grant.version_id) for call in calls if call.started)

    def _fail_calls(self) -> None:
        if not self._hello.done():
            self._hello.set_exception(WorkerDiedError(started=False))
            self._hello.exception()
        for call in self._table.clear():
            if call.outstanding is not None:
                call.outstanding.cancel()
            if not call.finished.done():
                call.finished.set_exception(WorkerDiedError(started=call.started, had_host_calls=call.host_calls > 0))
                # Marked as seen: where nobody waits for it, that is no error.
                call.finished.exception()

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(self._settings.exit_seconds):
                await asyncio.shield(exited := asyncio.ensure_future(self._process.wait_exit()))
        except TimeoutError:
            self._process.kill()
            await exited

    async def _reap(self) -> None:
        await self._process.wait_exit()

    async def wait_reaped(self) -> None:
        """Return when an ended worker's process is gone."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def aclose(self) -> None:
        """End the worker and wait until its process is gone."""
        self.retire("shutdown")
        await self.wait_reaped()

    def _idle_or_not(self) -> None:
        if not len(self._table):
            self.idle_since = time.monotonic()

    def _background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        # An empty context: what happens to a worker is not part of the log of whichever call was at hand.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _start_of(call: OpenCall, invocation: Invocation, component: int) -> bytes:
    remaining = call.deadline - time.monotonic()
    return build_start(invocation, component=component, wall_time_us=max(1, round(remaining * 1e6))).SerializeToString()


def _require_hello(kind: FrameKind, call_id: int) -> None:
    if kind is not FrameKind.HELLO or call_id != NO_CALL:
        message = f"{kind.name} before Hello"
        raise ViolationError(message)
