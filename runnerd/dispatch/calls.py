"""The call table of one worker: which of its frames count (T4).

The attack it stops: whoever escapes into a worker writes frames of its choice: host calls for another worker's call, for one that
has ended, two at once, of a capability that nobody granted, or a usage that was never used. The table belongs to one socketpair and
holds only the calls that were sent on it, under random ids; a HostCall or Done counts only for an open call of this table, and
everything else is a violation, for which the worker is killed.

No input or output here: frames in, events out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from extrunner.worker.v1 import worker_pb2
from registry.domain.capabilities import KNOWN
from registry.domain.limits import ExecutionLimits
from runnerd.capabilities.catalog import BY_NUMBER, HostFunction
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.values import ValueMismatchError, arguments_from_wire
from runnerd.dispatch.admission import Place
from runnerd.worker.frames import Frame, FrameError, FrameKind, parse_message

LOG_STREAMS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "info": ("log", "info"),
        "warn": ("log", "warn"),
        "error": ("log", "error"),
        "stdout": ("stdout", "info"),
        "stderr": ("stderr", "error"),
    }
)
"""What a worker calls a line → its stream and level in the execution log."""
MAX_LOG_LINE_BYTES = 8 * 1024
MAX_DENIALS = 32
"""Explanations that one call leaves: a guest may ask a thousand hosts for which there is a word each."""
_LOG_SLACK = 2
"""A worker enforces the log limits itself; one that sends twice as much is not ours any more."""


class ViolationError(FrameError):
    """A worker broke the protocol."""


@dataclass(slots=True, kw_only=True)
class CallNotes:
    """What a call has logged and was denied so far. Whoever sent the call reads it, however the call ends."""

    log: list[Mapping[str, str]] = field(default_factory=list)
    """In order: level, stream, message, offset_us (since the worker began), and truncated where it was cut."""
    ungranted: set[str] = field(default_factory=set)
    """Capabilities that are not in force and were called; the worker answered."""
    denials: list[Mapping[str, str]] = field(default_factory=list)
    """What capabilities that are in force were refused, explained by the broker; each once, at most `MAX_DENIALS`."""

    def explain(self, denial: Mapping[str, str]) -> None:
        """Keep an explanation, unless it is kept already or there are enough."""
        if len(self.denials) < MAX_DENIALS and denial not in self.denials:
            self.denials.append(denial)


@dataclass(slots=True, eq=False, kw_only=True)
class OpenCall:
    """One call that a worker holds. Mutable: the daemon's own account of it."""

    call_id: int
    grant: InvocationGrant
    limits: ExecutionLimits
    deadline: float
    """On the clock of `time.monotonic()`."""
    finished: asyncio.Future[FinishedCall | None]
    """Its result is None where the worker said nothing in time."""
    place: Place | None = None
    """What the call gives up while it waits for the host."""
    started: bool = False
    """The first byte of Start may have left."""
    cancelled: bool = False
    """It is to end; its host calls have no effect any more."""
    orphaned: bool = False
    """Nobody waits for it any more, but the worker still holds it."""
    host_calls: int = 0
    outstanding: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    """Of its deadline, then of the grace after it."""
    notes: CallNotes = field(default_factory=CallNotes)
    log_bytes: int = 0
    log_lines: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedCall:
    """What the worker said at the end of a call, checked for form, not yet judged."""

    done: worker_pb2.Done
    body: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCallRequested:
    """A host call that passed every check."""

    call: OpenCall
    function: HostFunction
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished:
    """A call has ended and left the table."""

    call: OpenCall
    finished: FinishedCall


Event = HostCallRequested | CallFinished


class CallTable:
    """The open calls of one worker."""

    def __init__(self) -> None:
        self._calls: dict[int, OpenCall] = {}
        self._body_of: tuple[OpenCall, worker_pb2.Done] | None = None

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def calls(self) -> tuple[OpenCall, ...]:
        """The open calls."""
        return tuple(self._calls.values())

    def open(
        self,
        *,
        grant: InvocationGrant,
        limits: ExecutionLimits,
        deadline: float,
        place: Place | None = None,
        notes: CallNotes | None = None,
    ) -> OpenCall:
        """Enter a call under a random id; what it logs and is denied goes to `notes`."""
        # SECURITY: 64 random bits; a worker cannot guess the id of a call that it was not given.
        call_id = 0
        while not call_id or call_id in self._calls:
            call_id = int.from_bytes(os.urandom(8), "big")
        finished: asyncio.Future[FinishedCall | None] = asyncio.get_running_loop().create_future()
        call = OpenCall(
            call_id=call_id,
            grant=grant,
            limits=limits,
            deadline=deadline,
            finished=finished,
            place=place,
            notes=CallNotes() if notes is None else notes,
        )
        self._calls[call_id] = call
        return call

    def holds(self, call: OpenCall) -> bool:
        """Tell whether the worker still has this call."""
        return self._calls.get(call.call_id) is call

    def forget(self, call: OpenCall) -> None:
        """Remove a call that never left for the worker."""
        self._calls.pop(call.call_id, None)

    def clear(self) -> tuple[OpenCall, ...]:
        """Remove all calls and return them: the worker is gone."""
        calls = self.calls
        self._calls.clear()
        self._body_of = None
        return calls

    def check(self, kind: FrameKind, call_id: int, length: int) -> OpenCall:
        """Return the call that a frame is for, by its header alone.

        Raises:
            ViolationError: such a frame may not come now; the worker has to be killed.
        """
        if self._body_of is not None:
            call = self._body_of[0]
            if kind is not FrameKind.BODY or call_id != call.call_id:
                raise ViolationError(f"a {kind.name} frame where a body was announced")  # noqa: EM102, TRY003
            # The worker, too, refuses what is larger than the call may answer; one that sends it is not ours any more.
            if length > call.limits.response_bytes:
                raise ViolationError(f"a body of {length} bytes where {call.limits.response_bytes} are allowed")  # noqa: EM102, TRY003
            return call
        if kind not in _HANDLED:
            raise ViolationError(f"a {kind.name} frame that nothing announced")  # noqa: EM102, TRY003
        known = self._calls.get(call_id)
        if known is None or not known.started:
            raise ViolationError(f"{kind.name} for a call that this worker does not have")  # noqa: EM102, TRY003
        return known

    def on_frame(self, frame: Frame) -> Event | None:
        """Account for one frame of the worker.

        Raises:
            FrameError: it may not be; the worker has to be killed.
        """
        call = self.check(frame.kind, frame.call_id, len(frame.payload))
        if self._body_of is not None:
            done = self._body_of[1]
            self._body_of = None
            return self._finish(call, done, frame.payload)
        if frame.kind is FrameKind.HOST_CALL:
            return self._on_host_call(call, frame)
        if frame.kind is FrameKind.LOG:
            self._on_log(call, frame)
            return None
        return self._on_done(call, frame)

    def _on_host_call(self, call: OpenCall, frame: Frame) -> HostCallRequested:
        if call.outstanding is not None:
            message = "a second host call while one is outstanding"
            raise ViolationError(message)
        call.host_calls += 1
        # The worker counts as well and ends the call at the limit; one that goes on is not ours any more.
        if call.host_calls > call.limits.host_calls:
            message = "more host calls than the call may make"
            raise ViolationError(message)
        asked = parse_message(worker_pb2.HostCall, frame.payload)
        function = BY_NUMBER.get(asked.function)
        if function is None or function.local:
            message = f"no brokered function has the number {asked.function}"
            raise ViolationError(message)
        # SECURITY: what is not granted never leaves a worker of ours; the broker checks once more.
        if function.capability not in call.grant.capabilities:
            message = f"{function.qualified_name} without the capability {function.capability}"
            raise ViolationError(message)
        try:
            arguments = arguments_from_wire(function, asked.arguments)
        except ValueMismatchError as error:
            message = f"arguments of {function.qualified_name}: {error}"
            raise ViolationError(message) from error
        return HostCallRequested(call=call, function=function, arguments=arguments)

    def _on_log(self, call: OpenCall, frame: Frame) -> None:
        said = parse_message(worker_pb2.Log, frame.payload)
        if not (said.lines or said.denied_capabilities):
            message = "a Log frame with nothing in it"
            raise ViolationError(message)
        for capability in said.denied_capabilities:
            if capability not in KNOWN or capability in call.grant.capabilities or capability in call.notes.ungranted:
                message = "a denied capability that does not exist, is in force, or was said before"
                raise ViolationError(message)
            call.notes.ungranted.add(capability)
        for line in said.lines:
            size = len(line.message.encode())
            call.log_lines += 1
            call.log_bytes += size
            if line.level not in LOG_STREAMS or size > MAX_LOG_LINE_BYTES * _LOG_SLACK:
                message = "a log line that no worker of ours sends"
                raise ViolationError(message)
            if call.log_lines > call.limits.log_lines * _LOG_SLACK or call.log_bytes > call.limits.log_bytes * _LOG_SLACK + size:
                message = "far more log lines than the call may write"
                raise ViolationError(message)
            if call.log_lines <= call.limits.log_lines and call.log_bytes <= call.limits.log_bytes:
                stream, level = LOG_STREAMS[line.level]
                message = call.grant.revealed.hide(line.message)
                entry = {"level": level, "stream": stream, "message": message, "offset_us": str(line.offset_us)}
                call.notes.log.append(entry | {"truncated": "true"} if line.truncated else entry)

    def _on_done(self, call: OpenCall, frame: Frame) -> CallFinished | None:
        done = parse_message(worker_pb2.Done, frame.payload)
        if done.WhichOneof("outcome") is None:
            message = "a Done without outcome"
            raise ViolationError(message)
        # SECURITY: fuel is what quotas count; more than was given cannot have been used.
        if done.fuel > call.limits.fuel:
            message = f"claims {done.fuel} units of fuel where {call.limits.fuel} were given"
            raise ViolationError(message)
        if done.WhichOneof("outcome") == "completed" and done.completed.has_body:
            self._body_of = (call, done)
            return None
        return self._finish(call, done, None)

    def _finish(self, call: OpenCall, done: worker_pb2.Done, body: bytes | None) -> CallFinished:
        if done.log_lines_dropped:
            call.notes.log.append(_dropped(done.log_lines_dropped))
        del self._calls[call.call_id]
        return CallFinished(call=call, finished=FinishedCall(done=done, body=body))


def _dropped(lines: int) -> Mapping[str, str]:
    """Return what stands in the log for lines that the limits kept out."""
    return {"level": "warn", "stream": "log", "message": f"({lines} more lines were dropped)", "offset_us": "0", "truncated": "true"}


_HANDLED = frozenset({FrameKind.HOST_CALL, FrameKind.LOG, FrameKind.DONE})
