"""Between public messages and the types of `runnerd.dispatch`: the only place that sees both.

Every field is checked here; what passes is in a form that nothing behind this module needs to look at again. A value that is not
acceptable is refused with the name of its field, never repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from extrunner.runner.v1 import execution_pb2, limits_pb2, runner_service_pb2
from registry.domain.digests import ContentHash, is_content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import InstallId, TenantId, VersionId, is_extension_name, is_request_id, is_tenant_id, is_uuid
from registry.domain.limits import LimitWishes
from registry.domain.paths import PathError, check_normal_form
from runnerd.capabilities.grants import GuestUser
from runnerd.dispatch.headers import HeaderError, check_header_sizes, check_request_header
from runnerd.dispatch.outcome import Completed, GuestError, LimitExceeded, LimitKind, TrapKind, Trapped, Usage
from runnerd.dispatch.request import ExecutionRequest, ExecutionResult, GuestRequest, Pins, Trigger
from runnerd.dispatch.runner_info import RunnerInfo
from runnerd.rpc.prescan import ScannedExecute

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
MAX_QUERY_CHARACTERS = 16 * 1024
MAX_USER_CHARACTERS = 512
MAX_USER_FIELD_CHARACTERS = 4096
MAX_WISH = (1 << 63) - 1
MAX_DURATION_SECONDS = 315_576_000_000
"""Of google.protobuf.Duration: 10,000 years."""
NANOSECONDS = 1_000_000_000
_NO_PINS = Pins()
_NO_WISHES = LimitWishes()
_QUERY = re.compile(r"[\x21\x22\x24-\x7e]*\Z")
_TRIGGERS = {
    execution_pb2.TRIGGER_UNSPECIFIED: Trigger.HTTP,
    execution_pb2.TRIGGER_HTTP: Trigger.HTTP,
    execution_pb2.TRIGGER_EVENT: Trigger.EVENT,
    execution_pb2.TRIGGER_SCHEDULE: Trigger.SCHEDULE,
}
_TRAP_KINDS = {kind: execution_pb2.TrapKind.Value(f"TRAP_KIND_{kind.name}") for kind in TrapKind}
_LIMIT_KINDS = {kind: limits_pb2.LimitKind.Value(f"LIMIT_KIND_{kind.name}") for kind in LimitKind}
_WARM_STATES = {
    "cached": runner_service_pb2.WARM_STATE_CACHED,
    "compiled": runner_service_pb2.WARM_STATE_COMPILED,
    "ui_only": runner_service_pb2.WARM_STATE_UI_ONLY,
}


def to_execution_request(scanned: ScannedExecute) -> ExecutionRequest:
    """Check every field of a request that passed the pre-scan.

    Raises:
        RefusalError: INVALID_REQUEST, HEADERS_TOO_LARGE or PAYLOAD_TOO_LARGE.
    """
    message, context = scanned.message, scanned.message.context
    _require(is_request_id(context.request_id), "context.request_id", "must be 1 to 128 characters of [A-Za-z0-9._-]")
    _require(is_tenant_id(context.tenant_id), "context.tenant_id", "is not a tenant id")
    extension = context.extension_id
    _require(is_extension_name(extension) or is_uuid(extension), "context.extension_id", "must be the name or the id of an extension")
    trigger = _TRIGGERS.get(message.trigger)
    if trigger is None:
        raise _invalid(field="trigger", what="is not a known trigger")
    event_id = message.event_id
    _require(
        not event_id or (trigger is Trigger.EVENT and is_uuid(event_id)), "event_id", "must be the id of an event, with the trigger EVENT"
    )
    return ExecutionRequest(
        request_id=context.request_id,
        tenant_id=TenantId(context.tenant_id),
        extension=extension,
        pins=_pins(context),
        asserted_user=_user(context.user) if context.HasField("user") else None,
        http=_http(message.http, scanned.body),
        wishes=_wishes(message.limits) if message.HasField("limits") else _NO_WISHES,
        idempotency_key=message.idempotency_key,
        trigger=trigger,
        event_id=event_id or None,
    )


def to_content_hash(message: runner_service_pb2.WarmRequest) -> ContentHash:
    """Check the hash of a WarmRequest.

    Raises:
        RefusalError: INVALID_REQUEST.
    """
    _require(is_content_hash(message.content_hash), "content_hash", 'must be "sha256:" and 64 lower-case hexadecimal digits')
    return ContentHash(message.content_hash)


def from_result(result: ExecutionResult) -> execution_pb2.ExecuteResponse:
    """Say how a call ended."""
    response = execution_pb2.ExecuteResponse(
        execution_id=result.execution_id, version_id=result.version_id, content_hash=result.content_hash
    )
    _write_usage(response.usage, result.usage)
    match result.outcome:
        case Completed() as completed:
            message = response.completed
            message.status = completed.status
            for name, value in completed.headers:
                message.headers.add(name=name, value=value)
            if completed.body is not None:
                message.body = completed.body
        case Trapped() as trapped:
            response.trapped.kind = _TRAP_KINDS[trapped.kind]
            response.trapped.message = trapped.message
        case LimitExceeded() as exceeded:
            response.limit_exceeded.limit = _LIMIT_KINDS[exceeded.limit]
            response.limit_exceeded.used = exceeded.used
            response.limit_exceeded.allowed = exceeded.allowed
        case GuestError() as failed:
            response.guest_error.message = failed.message
    return response


def from_warm(state: str, compile_seconds: float) -> runner_service_pb2.WarmResponse:
    """Say how a bundle became ready."""
    return runner_service_pb2.WarmResponse(state=_WARM_STATES[state], compile_duration=_duration(round(compile_seconds * 1_000_000)))


def from_runner_info(info: RunnerInfo) -> runner_service_pb2.GetRunnerInfoResponse:
    """Describe the daemon."""
    return runner_service_pb2.GetRunnerInfoResponse(
        engine_version=info.engine_version,
        engine_fingerprint=info.engine_fingerprint,
        workers=info.workers,
        slots=info.slots,
        workers_max=info.workers_max,
        wall_time_ceiling=_duration(info.ceiling.wall_time_ms * 1000),
        memory_bytes_ceiling=info.ceiling.memory_bytes,
        request_bytes_ceiling=info.ceiling.request_bytes,
        response_bytes_ceiling=info.ceiling.response_bytes,
        hardening=[
            runner_service_pb2.HardeningStep(name=step.name, applied=step.applied, mandatory=step.mandatory) for step in info.hardening
        ],
        version=info.version,
        trust_domain=info.trust_domain,
        trust_domain_production=info.trust_domain_production,
        cell=info.cell,
        cells=info.cells,
        worker_generation=info.generation,
        circuits_open=info.circuits_open,
    )


def _pins(context: execution_pb2.Context) -> Pins:
    install, version, pinned = context.install_id, context.version_id, context.content_hash
    if not (install or version or pinned):
        return _NO_PINS
    _require(not install or is_uuid(install), "context.install_id", "must be the id of an install")
    _require(not version or is_uuid(version), "context.version_id", "must be the id of a version")
    _require(not pinned or is_content_hash(pinned), "context.content_hash", 'must be "sha256:" and 64 lower-case hexadecimal digits')
    return Pins(
        install_id=InstallId(install) if install else None,
        version_id=VersionId(version) if version else None,
        content_hash=ContentHash(pinned) if pinned else None,
    )


def _user(user: execution_pb2.User) -> GuestUser:
    _require(bool(user.user_id), "context.user.user_id", "is required")
    texts = {"user_id": user.user_id, "email": user.email, "name": user.name, "type": user.type, "client_name": user.client_name}
    texts["client_id"] = user.client_id
    for name, text in texts.items():
        _require(len(text) <= MAX_USER_CHARACTERS and text.isprintable(), f"context.user.{name}", "is too long or holds control characters")
    extra = dict(user.additional_fields)
    _require(
        all(len(key) <= MAX_USER_CHARACTERS and len(value) <= MAX_USER_FIELD_CHARACTERS for key, value in extra.items()),
        "context.user.additional_fields",
        "holds a key or value that is too long",
    )
    return GuestUser(
        user_id=user.user_id,
        email=user.email,
        name=user.name,
        user_type=user.type,
        client_name=user.client_name,
        client_id=user.client_id if user.HasField("client_id") else None,
        additional_fields=extra,
    )


def _http(http: execution_pb2.HttpRequest, body: memoryview | None) -> GuestRequest:
    method, path, query = http.method, http.path, http.query
    _require(method in METHODS, "http.method", "must be GET, HEAD, POST, PUT, PATCH or DELETE")
    try:
        check_normal_form(path)
    except PathError as error:
        raise _invalid(field="http.path", what=f"is not in normal form: {error}") from error
    if query:
        _require(len(query) <= MAX_QUERY_CHARACTERS, "http.query", f"is longer than {MAX_QUERY_CHARACTERS} characters")
        _require(_QUERY.match(query) is not None, "http.query", "must be visible ASCII without '#'; encode the rest")
    return GuestRequest(method=method, path=path, query=query, headers=_headers(http.headers) if http.headers else (), body=body)


def _headers(headers: Iterable[execution_pb2.Header]) -> tuple[tuple[str, str], ...]:
    pairs = tuple((header.name, header.value) for header in headers)
    try:
        check_header_sizes(pairs)
    except HeaderError as error:
        raise RefusalError(Reason.HEADERS_TOO_LARGE, f"http.headers: {error}.", metadata={"field": "http.headers"}) from error
    for name, value in pairs:
        try:
            check_request_header(name, value)
        except HeaderError as error:
            raise _invalid(field="http.headers", what=str(error)) from error
    return pairs


def _wishes(limits: limits_pb2.Limits) -> LimitWishes:
    return LimitWishes(
        wall_time_ms=_wall_time_ms(limits.wall_time) if limits.HasField("wall_time") else None,
        memory_bytes=_wish("memory_bytes", limits.memory_bytes) if limits.HasField("memory_bytes") else None,
        fuel=_wish("fuel", limits.fuel) if limits.HasField("fuel") else None,
        response_bytes=_wish("response_bytes", limits.response_bytes, least=0) if limits.HasField("response_bytes") else None,
    )


def _wall_time_ms(duration: Duration) -> int:
    seconds, nanos = duration.seconds, duration.nanos
    valid = 0 <= seconds <= MAX_DURATION_SECONDS and 0 <= nanos < NANOSECONDS
    milliseconds = seconds * 1000 + nanos // 1_000_000
    _require(valid and milliseconds > 0, "limits.wall_time", "must be at least a millisecond")
    return milliseconds


def _wish(name: str, value: int, *, least: int = 1) -> int:
    _require(least <= value <= MAX_WISH, f"limits.{name}", f"must be at least {least}")
    return value


def _write_usage(message: limits_pb2.ResourceUsage, usage: Usage) -> None:
    _write_duration(message.wall_time, usage.wall_us)
    # Rounded: how long others keep a tenant waiting is theirs to know only roughly (T41).
    _write_duration(message.queue_time, round(usage.queue_us / 1000) * 1000)
    _write_duration(message.cpu_time, usage.cpu_us)
    message.fuel = usage.fuel
    if usage.peak_memory_bytes is not None:
        message.peak_memory_bytes = usage.peak_memory_bytes
    message.egress_request_bytes = usage.egress_request_bytes
    message.egress_response_bytes = usage.egress_response_bytes
    message.host_calls = usage.host_calls


def _write_duration(message: Duration, microseconds: int) -> None:
    # Setting a field, to 0 as well, makes the duration present: 0 is an answer, absence would be none.
    message.seconds, message.nanos = microseconds // 1_000_000, microseconds % 1_000_000 * 1000


def _duration(microseconds: int) -> Duration:
    message = Duration()
    _write_duration(message, microseconds)
    return message


def _require(holds: bool, field: str, what: str) -> None:  # noqa: FBT001 - the condition is the subject of the sentence.
    if not holds:
        raise _invalid(field=field, what=what)


def _invalid(*, field: str, what: str) -> RefusalError:
    return RefusalError(Reason.INVALID_REQUEST, f"{field} {what}.", metadata={"field": field})
