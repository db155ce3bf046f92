"""Every field of a public request: accepted in its form, refused by its name, never repaired."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from extrunner.runner.v1 import execution_pb2, limits_pb2, runner_service_pb2
from registry.domain.digests import ContentHash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import ExecutionId, VersionId, new_id
from runnerd.dispatch.outcome import Completed, GuestError, LimitExceeded, LimitKind, Outcome, TrapKind, Trapped, Usage
from runnerd.dispatch.request import ExecutionRequest, ExecutionResult, Trigger
from runnerd.rpc import converters
from runnerd.rpc.prescan import ScannedExecute, execute_request

HASH = "sha256:" + "a" * 64
USAGE = Usage(wall_us=1_500_001, queue_us=2_499, cpu_us=7, fuel=9, peak_memory_bytes=65_536, host_calls=3)
Change = Callable[[execution_pb2.ExecuteRequest], None]


def message() -> execution_pb2.ExecuteRequest:
    return execution_pb2.ExecuteRequest(
        context=execution_pb2.Context(request_id="req-1", tenant_id="tenant-a", extension_id="com.example.notes"),
        http=execution_pb2.HttpRequest(method="GET", path="/notes/1"),
    )


def convert(change: Change | None = None) -> ExecutionRequest:
    request = message()
    if change is not None:
        change(request)
    return converters.to_execution_request(execute_request(request.SerializeToString()))


def test_smallest_request__has_the_defaults() -> None:
    request = convert()
    assert (request.trigger, request.asserted_user, request.http.body, request.http.url) == (Trigger.HTTP, None, None, "/notes/1")
    assert request.pins.content_hash is None


def test_event__is_named_or_not() -> None:
    event_id = new_id()
    event = execution_pb2.ExecuteRequest(event_id=event_id, trigger=execution_pb2.TRIGGER_EVENT)
    assert convert(lambda request: request.MergeFrom(event)).event_id == event_id
    unnamed = convert(lambda request: setattr(request, "trigger", execution_pb2.TRIGGER_EVENT))
    assert (unnamed.trigger, unnamed.event_id) == (Trigger.EVENT, None)


def test_full_request__keeps_everything() -> None:
    def fill(request: execution_pb2.ExecuteRequest) -> None:
        request.context.install_id = new_id()
        request.context.version_id = new_id()
        request.context.content_hash = HASH
        request.context.user.CopyFrom(execution_pb2.User(user_id="u", email="e", client_id="", additional_fields={"k": "v"}))
        request.http.query = "a=1&b=%20"
        request.http.headers.add(name="x-a", value="1")
        request.http.headers.add(name="x-a", value="2")
        request.http.body = b"\x00\xff"
        request.limits.CopyFrom(limits_pb2.Limits(wall_time=Duration(seconds=1, nanos=5_000_000), memory_bytes=1, fuel=2, response_bytes=0))
        request.trigger = execution_pb2.TRIGGER_SCHEDULE

    request = convert(fill)
    assert request.http.headers == (("x-a", "1"), ("x-a", "2"))
    assert request.http.url == "/notes/1?a=1&b=%20"
    assert bytes(request.http.body or b"") == b"\x00\xff"
    assert request.asserted_user is not None
    assert request.asserted_user.client_id == ""
    assert request.wishes.wall_time_ms == 1005
    assert (request.wishes.response_bytes, request.wishes.cpu_time_ms) == (0, None)
    assert request.trigger is Trigger.SCHEDULE


def on_context(**fields: str) -> Change:
    def change(request: execution_pb2.ExecuteRequest) -> None:
        for name, value in fields.items():
            setattr(request.context, name, value)

    return change


def on_http(**fields: str) -> Change:
    def change(request: execution_pb2.ExecuteRequest) -> None:
        for name, value in fields.items():
            setattr(request.http, name, value)

    return change


def on_user(**fields: str) -> Change:
    def change(request: execution_pb2.ExecuteRequest) -> None:
        request.context.user.user_id = "u"
        for name, value in fields.items():
            setattr(request.context.user, name, value)

    return change


def header(name: str, value: str) -> Change:
    return lambda request: request.http.headers.extend([execution_pb2.Header(name=name, value=value)])


def wall(**fields: int) -> Change:
    return lambda request: request.limits.wall_time.CopyFrom(Duration(**fields))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (on_context(request_id=""), "context.request_id"),
        (on_context(request_id="a b"), "context.request_id"),
        (on_context(request_id="a" * 129), "context.request_id"),
        (on_context(request_id="a\n"), "context.request_id"),
        (on_context(tenant_id=""), "context.tenant_id"),
        (on_context(tenant_id="*"), "context.tenant_id"),
        (on_context(tenant_id="../x"), "context.tenant_id"),
        (on_context(extension_id="notes"), "context.extension_id"),
        (on_context(extension_id="Com.Example"), "context.extension_id"),
        (on_context(install_id="1"), "context.install_id"),
        (on_context(version_id=new_id().upper()), "context.version_id"),
        (on_context(content_hash=HASH.upper()), "context.content_hash"),
        (on_context(content_hash="sha256:" + "a" * 63), "context.content_hash"),
        (on_user(user_id=""), "context.user.user_id"),
        (on_user(name="x" * 513), "context.user.name"),
        (on_user(email="a\x1b[2J"), "context.user.email"),
        (on_http(method=""), "http.method"),
        (on_http(method="get"), "http.method"),
        (on_http(method="CONNECT"), "http.method"),
        (on_http(path=""), "http.path"),
        (on_http(path="/a//b"), "http.path"),
        (on_http(query="a#b"), "http.query"),
        (on_http(query="a b"), "http.query"),
        (on_http(query="é"), "http.query"),
        (on_http(query="q" * (16 * 1024 + 1)), "http.query"),
        (header("X-Upper", "1"), "http.headers"),
        (header("", "1"), "http.headers"),
        (header("a b", "1"), "http.headers"),
        (header("a", "b\r\nset-cookie: x"), "http.headers"),
        (header("a", "b\x00"), "http.headers"),
        (header("a", " b"), "http.headers"),
        (header("a", "b\x85"), "http.headers"),
        (header("connection", "close"), "http.headers"),
        (header("transfer-encoding", "chunked"), "http.headers"),
        (header("x-alga-admin", "1"), "http.headers"),
        (wall(seconds=0), "limits.wall_time"),
        (wall(seconds=-1), "limits.wall_time"),
        (wall(nanos=999_999), "limits.wall_time"),
        (wall(seconds=1, nanos=1_000_000_000), "limits.wall_time"),
        (wall(seconds=400_000_000_000), "limits.wall_time"),
        (lambda request: setattr(request.limits, "fuel", 0), "limits.fuel"),
        (lambda request: setattr(request.limits, "fuel", 2**64 - 1), "limits.fuel"),
        (lambda request: setattr(request.limits, "memory_bytes", 0), "limits.memory_bytes"),
        (lambda request: setattr(request, "trigger", 9), "trigger"),
        (lambda request: setattr(request, "event_id", new_id()), "event_id"),
        (
            lambda request: request.MergeFrom(execution_pb2.ExecuteRequest(event_id=new_id(), trigger=execution_pb2.TRIGGER_SCHEDULE)),
            "event_id",
        ),
        (lambda request: request.MergeFrom(execution_pb2.ExecuteRequest(event_id="1", trigger=execution_pb2.TRIGGER_EVENT)), "event_id"),
    ],
)
def test_bad_field__is_refused_by_name(change: Change, field: str) -> None:
    with pytest.raises(RefusalError) as refused:
        convert(change)
    assert refused.value.reason is Reason.INVALID_REQUEST
    assert refused.value.metadata["field"] == field


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False)])
def test_headers__16_kib_pass_one_more_does_not(extra: int, fits: bool) -> None:
    change = header("n", "v" * (16 * 1024 - 1 + extra))
    if fits:
        convert(change)
        return
    with pytest.raises(RefusalError) as refused:
        convert(change)
    assert refused.value.reason is Reason.HEADERS_TOO_LARGE


def test_user_of_128_field_characters__passes_and_longer_keys_do_not() -> None:
    def fields(key: str, value: str) -> Change:
        return lambda request: request.context.user.CopyFrom(execution_pb2.User(user_id="u", additional_fields={key: value}))

    assert convert(fields("k" * 512, "v" * 4096)).asserted_user is not None
    for key, value in (("k" * 513, "v"), ("k", "v" * 4097)):
        with pytest.raises(RefusalError):
            convert(fields(key, value))


def result(outcome: Outcome) -> execution_pb2.ExecuteResponse:
    return converters.from_result(
        ExecutionResult(
            outcome=outcome,
            usage=USAGE,
            execution_id=ExecutionId("e"),
            version_id=VersionId("v"),
            content_hash=ContentHash(HASH),
        )
    )


def test_completed__is_said_in_full() -> None:
    said = result(Completed(status=201, headers=(("a", "1"), ("a", "2")), body=b""))
    assert said.WhichOneof("outcome") == "completed"
    assert [(item.name, item.value) for item in said.completed.headers] == [("a", "1"), ("a", "2")]
    assert said.completed.HasField("body")
    assert not result(Completed(status=204, headers=(), body=None)).completed.HasField("body")
    assert said.usage.wall_time.ToMicroseconds() == 1_500_001
    assert said.usage.queue_time.ToMicroseconds() == 2_000, "rounded to a millisecond (T41)"
    assert said.usage.peak_memory_bytes == 65_536


@pytest.mark.parametrize("kind", list(TrapKind))
def test_every_trap_kind__has_its_public_value(kind: TrapKind) -> None:
    said = result(Trapped(kind=kind, message="m"))
    assert execution_pb2.TrapKind.Name(said.trapped.kind) == f"TRAP_KIND_{kind.name}"


@pytest.mark.parametrize("kind", list(LimitKind))
def test_every_limit_kind__has_its_public_value(kind: LimitKind) -> None:
    said = result(LimitExceeded(limit=kind, used=5, allowed=4))
    assert limits_pb2.LimitKind.Name(said.limit_exceeded.limit) == f"LIMIT_KIND_{kind.name}"
    assert (said.limit_exceeded.used, said.limit_exceeded.allowed) == (5, 4)


def test_public_enums__hold_nothing_that_the_daemon_does_not_know() -> None:
    assert len(execution_pb2.TrapKind.keys()) == len(TrapKind) + 1
    assert len(limits_pb2.LimitKind.keys()) == len(LimitKind) + 1
    assert len(execution_pb2.Trigger.keys()) == len(Trigger) + 1


def test_guest_error__is_said() -> None:
    assert result(GuestError(message="no")).guest_error.message == "no"


def test_scanned_body__is_the_one_that_counts() -> None:
    request = message()
    scanned = ScannedExecute(message=request, body=memoryview(b"x"))
    assert bytes(converters.to_execution_request(scanned).http.body or b"") == b"x"


def test_content_hash_of_warm__is_checked() -> None:
    assert converters.to_content_hash(runner_service_pb2.WarmRequest(content_hash=HASH)) == HASH
    with pytest.raises(RefusalError):
        converters.to_content_hash(runner_service_pb2.WarmRequest(content_hash="sha256:x"))
