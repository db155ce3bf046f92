"""T20, T22: the pre-scan accepts exactly what the parser reads one way, and refuses the rest before an object exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from extrunner.runner.v1 import execution_pb2, limits_pb2, runner_service_pb2
from extrunner.worker.v1 import worker_pb2
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MIB
from runnerd.rpc import prescan
from runnerd.rpc.wire import WireError, WireLimits, WireProblem, build_rule, scan
from tests.fakes.resident_memory import peak_growth

WIDE = WireLimits(head_bytes=MIB, opaque_bytes=32 * MIB, fields=10_000, depth=16)


def tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return tag(number, 2) + varint(len(content)) + content


def request(**changes: Any) -> execution_pb2.ExecuteRequest:
    fields: dict[str, Any] = {
        "context": execution_pb2.Context(request_id="r", tenant_id="t", extension_id="com.example.x"),
        "http": execution_pb2.HttpRequest(method="POST", path="/a", body=b"body"),
    }
    return execution_pb2.ExecuteRequest(**fields | changes)


def refused(raw: bytes) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        prescan.execute_request(raw)
    return caught.value


texts = st.text(max_size=20)
requests = st.builds(
    execution_pb2.ExecuteRequest,
    context=st.builds(
        execution_pb2.Context,
        request_id=texts,
        tenant_id=texts,
        extension_id=texts,
        user=st.none()
        | st.builds(
            execution_pb2.User, user_id=texts, client_id=st.none() | texts, additional_fields=st.dictionaries(texts, texts, max_size=5)
        ),
    ),
    http=st.builds(
        execution_pb2.HttpRequest,
        method=texts,
        path=texts,
        headers=st.lists(st.builds(execution_pb2.Header, name=texts, value=texts), max_size=8),
        body=st.none() | st.binary(max_size=300),
    ),
    limits=st.none()
    | st.builds(
        limits_pb2.Limits,
        wall_time=st.none() | st.builds(Duration, seconds=st.integers(0, 10**9), nanos=st.integers(0, 10**9 - 1)),
        fuel=st.none() | st.integers(0, 2**64 - 1),
    ),
    idempotency_key=texts,
    trigger=st.integers(0, 3),
)


@given(requests)
def test_any_message_of_ours__is_accepted_and_split_without_loss(message: execution_pb2.ExecuteRequest) -> None:
    scanned = prescan.execute_request(message.SerializeToString())
    assert (scanned.body is not None) == message.http.HasField("body")
    whole = scanned.message
    assert not whole.http.HasField("body")
    if scanned.body is not None:
        whole.http.body = bytes(scanned.body)
    assert whole == message


@settings(max_examples=300)
@given(st.binary(max_size=200) | requests.flatmap(lambda message: mutated(message.SerializeToString())))
def test_whatever_is_accepted__means_to_the_parser_what_it_meant_to_the_scan(raw: bytes) -> None:
    try:
        scanned = scan(raw, prescan._EXECUTE, prescan.LIMITS)
    except WireError:
        return
    try:
        whole = execution_pb2.ExecuteRequest.FromString(raw)
    except DecodeError:
        return  # Invalid UTF-8 is the parser's to find.
    head = execution_pb2.ExecuteRequest.FromString(scanned.head)
    assert bytes(scanned.opaque or b"") == whole.http.body
    whole.http.ClearField("body")
    head.http.ClearField("body")
    assert head.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


def mutated(raw: bytes) -> st.SearchStrategy[bytes]:
    def change(raw: bytes, position: int, byte: int, kind: str) -> bytes:
        position %= max(1, len(raw))
        match kind:
            case "flip":
                return raw[:position] + bytes([byte]) + raw[position + 1 :]
            case "insert":
                return raw[:position] + bytes([byte]) + raw[position:]
            case "cut":
                return raw[:position]
            case _:
                return raw + raw[position:]

    return st.builds(change, st.just(raw), st.integers(0, 400), st.integers(0, 255), st.sampled_from(["flip", "insert", "cut", "repeat"]))


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        (field(1, b""), WireProblem.DUPLICATE_FIELD),
        (field(2, b""), WireProblem.DUPLICATE_FIELD),
        (field(3, b"") + field(3, b""), WireProblem.DUPLICATE_FIELD),
        (field(4, b"a") + field(4, b"b"), WireProblem.DUPLICATE_FIELD),
        (field(15, b"x"), WireProblem.UNKNOWN_FIELD),
        (tag(15, 0) + b"\x01", WireProblem.UNKNOWN_FIELD),
        (tag(1, 3) + tag(1, 4), WireProblem.UNKNOWN_FIELD),
        (tag(4, 0) + b"\x01", WireProblem.UNKNOWN_FIELD),
        (tag(4, 1) + bytes(8), WireProblem.UNKNOWN_FIELD),
        (b"\x07", WireProblem.UNKNOWN_FIELD),
        (tag(4, 2) + varint(99) + b"x", WireProblem.TRUNCATED),
        (tag(4, 2), WireProblem.TRUNCATED),
        (tag(5, 0) + b"\xff" * 11, WireProblem.BAD_VARINT),
        (tag(5, 0) + b"\x80\x00", WireProblem.BAD_VARINT),
        (b"\xa2\x00" + b"\x00", WireProblem.BAD_VARINT),
        (tag(5, 0) + b"\x80" * 9 + b"\x7f", WireProblem.BAD_VARINT),
    ],
)
def test_each_way_to_confuse_the_parser__is_refused_by_name(extra: bytes, problem: WireProblem) -> None:
    error = refused(request().SerializeToString() + extra)
    assert error.reason is Reason.INVALID_REQUEST
    assert isinstance(error, prescan.PrescanRefusedError)
    assert error.problem == problem


def test_duplicates_inside_submessages__are_refused() -> None:
    limits = field(1, b"") + field(1, b"")
    body_twice = field(1, b"GET") + field(5, b"a") + field(5, b"b")
    for raw in (field(3, limits), field(2, body_twice), field(1, field(1, b"a") + field(1, b"b"))):
        assert refused(raw).metadata["field"].startswith("extrunner.runner.v1.")


def test_headers__64_pass_65_do_not() -> None:
    def with_headers(count: int) -> bytes:
        http = execution_pb2.HttpRequest(method="GET", path="/", headers=[execution_pb2.Header(name="a", value="b")] * count)
        return request(http=http).SerializeToString()

    assert len(prescan.execute_request(with_headers(64)).message.http.headers) == 64
    assert refused(with_headers(65)).reason is Reason.HEADERS_TOO_LARGE


def test_user_fields__32_pass_33_do_not() -> None:
    def with_fields(count: int) -> bytes:
        user = execution_pb2.User(user_id="u", additional_fields={str(index): "v" for index in range(count)})
        return request(context=execution_pb2.Context(user=user)).SerializeToString()

    assert len(prescan.execute_request(with_fields(32)).message.context.user.additional_fields) == 32
    assert refused(with_fields(33)).reason is Reason.INVALID_REQUEST


def test_head__is_bounded_at_128_kib_without_the_body() -> None:
    def with_query(size: int) -> bytes:
        return request(http=execution_pb2.HttpRequest(query="q" * size, body=b"x" * MIB)).SerializeToString()

    overhead = len(with_query(1000)) - 1000 - MIB
    # The length of the query needs three bytes here and two above; found by measuring, not by counting.
    fits = prescan.MAX_HEAD_BYTES - overhead - 4
    assert prescan.execute_request(with_query(fits)).body is not None
    assert refused(with_query(prescan.MAX_HEAD_BYTES)).reason is Reason.INVALID_REQUEST


def test_body__is_bounded_at_the_ceiling() -> None:
    ceiling = prescan.LIMITS.opaque_bytes
    at_limit = prescan.execute_request(request(http=execution_pb2.HttpRequest(body=bytes(ceiling))).SerializeToString())
    assert at_limit.body is not None
    assert len(at_limit.body) == ceiling
    assert refused(request(http=execution_pb2.HttpRequest(body=bytes(ceiling + 1))).SerializeToString()).reason is Reason.PAYLOAD_TOO_LARGE


def test_body__is_not_copied() -> None:
    raw = request(http=execution_pb2.HttpRequest(body=b"x" * 1000)).SerializeToString()
    scanned = prescan.execute_request(raw)
    assert scanned.body is not None
    assert scanned.body.obj is raw


def test_invalid_utf8__is_a_refusal_not_an_exception_of_the_parser() -> None:
    error = refused(field(1, field(1, b"\xff\xfe")))
    assert isinstance(error, prescan.PrescanRefusedError)
    assert error.problem == "undecodable"


def test_small_messages__refuse_what_they_do_not_hold() -> None:
    raw = runner_service_pb2.WarmRequest(content_hash="sha256:" + "0" * 64).SerializeToString()
    assert prescan.warm_request(raw).content_hash.startswith("sha256:")
    with pytest.raises(RefusalError):
        prescan.warm_request(raw + raw)
    with pytest.raises(RefusalError):
        prescan.warm_request(field(1, b"x" * 5000))
    with pytest.raises(RefusalError):
        prescan.info_request(b"\x08\x01")
    prescan.info_request(b"")


def test_nesting__is_bounded_even_where_the_schema_is_not() -> None:
    rule = build_rule(worker_pb2.Value.DESCRIPTOR)
    value = worker_pb2.Value(text="x")
    for _ in range(40):
        value = worker_pb2.Value(list=worker_pb2.ValueList(items=[value]))
    with pytest.raises(WireError) as caught:
        scan(value.SerializeToString(), rule, WIDE)
    assert caught.value.problem is WireProblem.TOO_DEEP


def test_oneof__second_member_is_refused() -> None:
    rule = build_rule(worker_pb2.Value.DESCRIPTOR)
    raw = worker_pb2.Value(text="x").SerializeToString() + worker_pb2.Value(unsigned=1).SerializeToString()
    with pytest.raises(WireError) as caught:
        scan(raw, rule, WIDE)
    assert caught.value.problem is WireProblem.DUPLICATE_FIELD


SIZE = 32 * MIB
BOMBS: dict[str, Callable[[], bytes]] = {
    "empty headers": lambda: field(2, field(4, b"") * (SIZE // 2 - 4)),
    "map entries": lambda: field(1, field(7, field(7, b"") * (SIZE // 2 - 8))),
    "unknown fields": lambda: (tag(99, 0) + b"\x01") * (SIZE // 3),
    "nested groups": lambda: tag(50, 3) * (SIZE // 2),
    "duplicate singular": lambda: field(4, b"") * (SIZE // 2),
    "one long string": lambda: field(4, b"k" * (SIZE - 16)),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_bombs_of_32_mib__are_refused_without_memory(name: str) -> None:
    raw = BOMBS[name]()
    with peak_growth() as grown:
        error = refused(raw)
    assert error.reason in {Reason.INVALID_REQUEST, Reason.HEADERS_TOO_LARGE, Reason.PAYLOAD_TOO_LARGE}
    assert grown.bytes < 4 * MIB


def test_the_measure__sees_what_the_parser_would_have_cost() -> None:
    with peak_growth() as grown:
        execution_pb2.HttpRequest.FromString(field(4, b"") * (4 * MIB))
    assert grown.bytes > 32 * MIB
