"""From what a worker said to the outcome of a call: the daemon's clock and the daemon's limits decide.

The attack it stops (T4, T12, T22): a worker's figures are claims. An answer after the deadline is WALL_TIME whatever it says, sizes
and headers are checked here again, usage is clamped to what the daemon measured, `allowed` is always the daemon's own figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from extrunner.worker.v1 import worker_pb2
from registry.domain.headers import MAX_HEADER_BYTES, MAX_HEADERS
from registry.domain.limits import ExecutionLimits
from runnerd.dispatch.calls import FinishedCall, ViolationError
from runnerd.dispatch.headers import (
    HeaderError,
    check_header,
    check_header_sizes,
    filter_response_headers,
)
from runnerd.dispatch.outcome import Completed, GuestError, LimitExceeded, LimitKind, Outcome, TrapKind, Trapped, Usage

MAX_MESSAGE_CHARACTERS = 1024
_MIN_STATUS, _MAX_STATUS = 200, 599
_BODILESS = frozenset({204, 304})
E = TypeVar("E", TrapKind, LimitKind)


class WorkerInternalError(Exception):
    """The worker could not run the call: an error of ours, not of the guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the daemon saw of a call."""

    wall_us: int
    """From the moment the worker had it."""
    queue_us: int
    host_calls: int
    egress_request_bytes: int
    egress_response_bytes: int
    late: bool
    """The answer came after the deadline."""


def judge(finished: FinishedCall, limits: ExecutionLimits, measured: Measured, *, hide: Callable[[str], str] = str) -> Outcome:
    """Decide how a call ended.

    Args:
        finished: what the worker said.
        limits: of the call.
        measured: what the daemon saw.
        hide: takes the secrets that the call was given out of a guest's sentence.

    Raises:
        ViolationError: the worker said something that cannot be.
        WorkerInternalError: the worker could not run it.
    """
    done = finished.done
    kind = done.WhichOneof("outcome")
    # First: a call that was cut at its deadline ends as the worker's "cancelled".
    if measured.late:
        return wall_time_exceeded(limits, measured.wall_us)
    if kind == "internal_error":
        raise WorkerInternalError(_printable(hide(done.internal_error)))
    if kind == "trapped":
        return Trapped(kind=_member(TrapKind, done.trapped.kind), message=_printable(hide(done.trapped.message)))
    if kind == "limit":
        limit = _member(LimitKind, done.limit.limit)
        return LimitExceeded(limit=limit, used=_used(limit, done, measured), allowed=_allowed(limit, limits, done.limit.allowed))
    if kind == "guest_error":
        return GuestError(message=_printable(hide(done.guest_error)))
    return _completed(done.completed, finished.body)


def wall_time_exceeded(limits: ExecutionLimits, wall_us: int) -> LimitExceeded:
    """Say that the wall time is over."""
    return LimitExceeded(limit=LimitKind.WALL_TIME, used=max(wall_us // 1000, limits.wall_time_ms), allowed=limits.wall_time_ms)


def usage_of(done: worker_pb2.Done | None, limits: ExecutionLimits, measured: Measured) -> Usage:
    """Return what a call used: the daemon's own figures, and the worker's clamped to what they can be."""
    peak = done.peak_memory_bytes if done is not None and done.HasField("peak_memory_bytes") else None
    return Usage(
        wall_us=measured.wall_us,
        queue_us=measured.queue_us,
        # One thread cannot use more CPU time than passed on the wall.
        cpu_us=min(done.cpu_time_us, measured.wall_us) if done is not None else 0,
        fuel=min(done.fuel, limits.fuel) if done is not None else 0,
        peak_memory_bytes=None if peak is None else min(peak, limits.memory_bytes),
        host_calls=measured.host_calls,
        egress_request_bytes=measured.egress_request_bytes,
        egress_response_bytes=measured.egress_response_bytes,
    )


def _completed(completed: worker_pb2.Completed, body: bytes | None) -> Outcome:
    if not _MIN_STATUS <= completed.status <= _MAX_STATUS:
        return GuestError(message=f"The status {completed.status} is not between {_MIN_STATUS} and {_MAX_STATUS}.")
    headers = tuple((header.name, header.value) for header in completed.headers)
    if len(headers) > MAX_HEADERS:
        return LimitExceeded(limit=LimitKind.HEADERS, used=len(headers), allowed=MAX_HEADERS)
    try:
        check_header_sizes(headers)
    except HeaderError:
        size = sum(len(name.encode()) + len(value.encode()) for name, value in headers)
        return LimitExceeded(limit=LimitKind.HEADERS, used=size, allowed=MAX_HEADER_BYTES)
    try:
        for name, value in headers:
            check_header(name, value)
    except HeaderError as error:
        return GuestError(message=f"A response header is invalid: {error}.")
    if body and completed.status in _BODILESS:
        return GuestError(message=f"The status {completed.status} allows no body.")
    return Completed(status=completed.status, headers=filter_response_headers(headers), body=body)


def _used(limit: LimitKind, done: worker_pb2.Done, measured: Measured) -> int:
    """Return what was used: times in milliseconds from what the daemon knows, the rest as the worker says."""
    if limit is LimitKind.WALL_TIME:
        return measured.wall_us // 1000
    if limit is LimitKind.CPU_TIME:
        return min(done.cpu_time_us, measured.wall_us) // 1000
    return done.limit.used


def _allowed(limit: LimitKind, limits: ExecutionLimits, claimed: int) -> int:
    own = {
        LimitKind.WALL_TIME: limits.wall_time_ms,
        LimitKind.CPU_TIME: limits.cpu_time_ms,
        LimitKind.FUEL: limits.fuel,
        LimitKind.MEMORY: limits.memory_bytes,
        # Without the bridge less can be carried, and the worker says so; more never.
        LimitKind.RESPONSE_SIZE: min(claimed, limits.response_bytes),
        LimitKind.HOST_CALLS: limits.host_calls,
        # One limit of two units: their number, or their bytes.
        LimitKind.HEADERS: MAX_HEADER_BYTES if claimed == MAX_HEADER_BYTES else MAX_HEADERS,
    }
    return own.get(limit, claimed)


def _member(kind: type[E], value: str) -> E:
    try:
        return kind(value)
    except ValueError as error:
        message = f"{value[:40]!r} is no {kind.__name__}"
        raise ViolationError(message) from error


def _printable(text: str) -> str:
    """Cut a guest's sentence, with control and bidirectional characters as escapes (T44)."""
    cut = text[:MAX_MESSAGE_CHARACTERS]
    return "".join(character if character.isprintable() or character == "\n" else f"\\u{ord(character):04x}" for character in cut)
