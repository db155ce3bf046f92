"""Says how a call ended, as a Done message."""

from __future__ import annotations

from extrunner.worker.v1 import worker_pb2
from runnerd.engine.invocation import Finished
from runnerd.engine.outcomes import Completed, GuestError, InternalError, LimitExceeded, Trapped


def done_message(finished: Finished) -> tuple[worker_pb2.Done, bytes | None]:
    """Return the message and the body that follows it, None where none does."""
    done = worker_pb2.Done(
        fuel=finished.fuel,
        cpu_time_us=max(0, int(finished.cpu_seconds * 1e6)),
        wall_time_us=max(0, int(finished.wall_seconds * 1e6)),
    )
    if finished.peak_memory_bytes is not None:
        done.peak_memory_bytes = finished.peak_memory_bytes
    body: bytes | None = None
    match finished.outcome:
        case Completed(status=status, headers=headers, body=answer):
            body = answer
            done.completed.status = status
            done.completed.has_body = body is not None
            done.completed.headers.extend(worker_pb2.FrameHeader(name=name, value=value) for name, value in headers)
        case Trapped(kind=kind, message=message):
            done.trapped.kind, done.trapped.message = kind, message
        case LimitExceeded(limit=limit, used=used, allowed=allowed):
            done.limit.limit, done.limit.used, done.limit.allowed = limit, used, allowed
        case GuestError(message=message):
            done.guest_error = message
        case InternalError(message=message):
            done.internal_error = message
    return done, body
