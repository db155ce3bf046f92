"""The Start frame: built field by field from validated values (T22).

SECURITY: nothing here copies or appends bytes of a caller's message. The body is the one thing that passes as it came, in a BODY frame of
its own that nobody parses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from extrunner.worker.v1 import worker_pb2
from registry.domain.limits import ExecutionLimits
from runnerd.artifacts.loaded import CompiledExtension
from runnerd.capabilities.grants import InvocationGrant
from runnerd.dispatch.admission import Place
from runnerd.dispatch.calls import CallNotes
from runnerd.dispatch.request import GuestRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One call, ready for a worker: verified code, the authority it runs under, what it may use, and what it is asked."""

    extension: CompiledExtension
    grant: InvocationGrant
    limits: ExecutionLimits
    http: GuestRequest
    deadline: float
    """On the clock of `time.monotonic()`; at most `limits.wall_time_ms` away when it is sent."""
    queue_us: int = 0
    place: Place | None = None
    """What it holds while it computes, and not while it waits for the host."""
    notes: CallNotes = field(default_factory=CallNotes)
    """Where what it logs and is denied goes while it runs."""


def build_start(invocation: Invocation, *, component: int, wall_time_us: int) -> worker_pb2.Start:
    """Build the frame's message.

    Args:
        invocation: the call.
        component: number of the component in this worker.
        wall_time_us: what is left of the wall time now.
    """
    grant, limits, http = invocation.grant, invocation.limits, invocation.http
    return worker_pb2.Start(
        component=component,
        request_id=grant.request_id,
        tenant_id=grant.tenant_id,
        extension_id=grant.extension_name,
        install_id=grant.install_id,
        version_id=grant.version_id,
        method=http.method,
        url=http.url,
        headers=[worker_pb2.FrameHeader(name=name, value=value) for name, value in http.headers],
        has_body=http.body is not None,
        wall_time_us=wall_time_us,
        fuel=limits.fuel,
        memory_bytes=limits.memory_bytes,
        response_bytes=limits.response_bytes,
        host_calls=limits.host_calls,
        capabilities=sorted(grant.capabilities),
        log_lines=limits.log_lines,
        log_bytes=limits.log_bytes,
        cpu_time_us=limits.cpu_time_ms * 1000,
    )
