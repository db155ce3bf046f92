"""T20, T22: what small messages are accepted by, without a walk over their fields, is never laxer than the scans."""

from __future__ import annotations

from itertools import pairwise

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from extrunner.runner.v1 import execution_pb2, limits_pb2
from extrunner.worker.v1 import worker_pb2
from registry.domain.errors import RefusalError
from runnerd.rpc import prescan
from runnerd.worker.small_messages import MAX_BYTES, parse_canonical
from runnerd.worker.wire_scan import scan_message

texts = st.text(max_size=12)
headers = st.lists(st.builds(execution_pb2.Header, name=texts, value=texts), max_size=4)
users = st.builds(
    execution_pb2.User, user_id=texts, client_id=st.none() | texts, additional_fields=st.dictionaries(texts, texts, max_size=3)
)
limits = st.builds(limits_pb2.Limits, fuel=st.none() | st.integers(0, 2**64 - 1), memory_bytes=st.none() | st.integers(0, 2**64 - 1))
requests = st.builds(
    execution_pb2.ExecuteRequest,
    context=st.builds(execution_pb2.Context, request_id=texts, tenant_id=texts, user=st.none() | users),
    http=st.builds(execution_pb2.HttpRequest, method=texts, path=texts, headers=headers, body=st.none() | st.binary(max_size=60)),
    limits=st.none() | limits,
    trigger=st.integers(-(2**31), 2**31 - 1),
)
dones = st.builds(
    worker_pb2.Done,
    completed=st.none()
    | st.builds(
        worker_pb2.Completed,
        status=st.integers(0, 2**32 - 1),
        has_body=st.booleans(),
        headers=st.lists(st.builds(worker_pb2.FrameHeader, name=texts, value=texts), max_size=3),
    ),
    fuel=st.integers(0, 2**64 - 1),
    peak_memory_bytes=st.none() | st.integers(0, 2**64 - 1),
)


def spoiled(messages: st.SearchStrategy[Message]) -> st.SearchStrategy[bytes]:
    """Bytes of messages, whole, one behind the other, cut, with bytes changed, put in or said twice."""

    def change(pieces: list[Message], position: int, other: bytes, kind: str) -> bytes:
        raw = b"".join(piece.SerializeToString() for piece in pieces)
        position %= max(1, len(raw))
        match kind:
            case "put":
                return raw[:position] + other + raw[position + len(other) :]
            case "insert":
                return raw[:position] + other + raw[position:]
            case "cut":
                return raw[:position]
            case "twice":
                return raw + raw[position:]
            case _:
                return raw

    kinds = st.sampled_from(["put", "insert", "cut", "twice", "whole"])
    return st.builds(change, st.lists(messages, min_size=1, max_size=3), st.integers(0, 300), st.binary(min_size=1, max_size=4), kinds)


@settings(max_examples=500)
@given(spoiled(requests) | st.binary(max_size=64))
def test_whatever_is_accepted_at_once__the_scan_accepts_with_the_same_meaning(raw: bytes) -> None:
    at_once = prescan._small_execute(raw)
    if at_once is None:
        return
    scanned = prescan._scanned_execute(raw)
    assert at_once.message == scanned.message
    assert (at_once.body is None) == (scanned.body is None)
    assert bytes(at_once.body or b"") == bytes(scanned.body or b"")
    if at_once.body is not None:
        assert at_once.body.obj is raw


@settings(max_examples=500)
@given(spoiled(dones) | st.binary(max_size=64))
def test_whatever_of_a_worker_is_accepted_at_once__the_scan_accepts(raw: bytes) -> None:
    done = parse_canonical(worker_pb2.Done, raw)
    if done is not None:
        scan_message(raw, worker_pb2.Done.DESCRIPTOR)
        assert done == worker_pb2.Done.FromString(raw)


@given(requests)
def test_what_our_own_clients_write__is_accepted_at_once(message: execution_pb2.ExecuteRequest) -> None:
    assert prescan._small_execute(message.SerializeToString(deterministic=True)) is not None


@given(dones)
def test_what_our_own_workers_write__is_accepted_at_once(message: worker_pb2.Done) -> None:
    assert parse_canonical(worker_pb2.Done, message.SerializeToString()) == message


@pytest.mark.parametrize(
    "extra",
    [
        b"\x0a\x00",  # context again
        b"\x12\x00",  # http again
        b"\x28\x00",  # a default said in so many bytes
        b"\x28\x81\x00",  # longer than needed
        b"\x28\x01\x28\x02",  # a number twice
        b"\x7a\x01x",  # field 15 does not exist
        b"\x78\x01",
        b"\x7b\x7c",  # a group
        b"\x22\x01\xff",  # not UTF-8
        b"\x22\x05x",  # cut
    ],
)
def test_each_other_spelling__is_left_to_the_scan(extra: bytes) -> None:
    message = execution_pb2.ExecuteRequest(
        context=execution_pb2.Context(request_id="r", tenant_id="t"), http=execution_pb2.HttpRequest(method="GET")
    )
    raw = message.SerializeToString()
    assert parse_canonical(execution_pb2.ExecuteRequest, raw) is not None
    assert parse_canonical(execution_pb2.ExecuteRequest, raw + extra) is None


def test_number_that_is_negative_in_five_bytes__does_not_pay_for_a_field_said_twice() -> None:
    """Written again it is five bytes longer; a comparison of lengths alone would let five bytes of something else pass."""
    trigger, twice = b"\x28\xff\xff\xff\xff\x0f", b"\x22\x03abc"
    assert execution_pb2.ExecuteRequest.FromString(trigger).ByteSize() == len(trigger) + 5
    assert parse_canonical(execution_pb2.ExecuteRequest, twice + twice + trigger) is None


def test_size_and_depth__are_bounded_before_a_message_exists() -> None:
    full = execution_pb2.HttpRequest(query="q" * (MAX_BYTES - 3))
    assert len(full.SerializeToString()) == MAX_BYTES
    assert parse_canonical(execution_pb2.HttpRequest, full.SerializeToString()) == full
    full.query += "q"
    assert parse_canonical(execution_pb2.HttpRequest, full.SerializeToString()) is None
    assert parse_canonical(worker_pb2.Value, worker_pb2.Value(text="x").SerializeToString()) is None
    assert parse_canonical(worker_pb2.HostCall, worker_pb2.HostCall(function=1).SerializeToString()) is None


@pytest.mark.parametrize("count", [65, 500])
def test_too_many_small_headers__are_refused_by_the_scans_words(count: int) -> None:
    raw = execution_pb2.ExecuteRequest(http=execution_pb2.HttpRequest(headers=[execution_pb2.Header()] * count)).SerializeToString()
    assert len(raw) <= MAX_BYTES
    with pytest.raises(prescan.PrescanRefusedError) as caught:
        prescan.execute_request(raw)
    assert caught.value.problem == "too_many_repeats"


@settings(max_examples=300)
@given(message=requests, cuts=st.lists(st.integers(0, 400), min_size=1, max_size=4), field=st.sampled_from([1, 2]))
def test_submessage_in_several_pieces__is_refused_however_it_is_split(
    message: execution_pb2.ExecuteRequest, cuts: list[int], field: int
) -> None:
    """The parser would merge the pieces into what was never checked as one (T22)."""
    inner = (message.context if field == 1 else message.http).SerializeToString()
    edges = [0, *sorted(cut % (len(inner) + 1) for cut in cuts), len(inner)]
    pieces = [inner[start:end] for start, end in pairwise(edges)]
    message.ClearField("context" if field == 1 else "http")
    raw = message.SerializeToString() + b"".join(_submessage(field, piece) for piece in pieces)
    with pytest.raises(RefusalError):
        prescan.execute_request(raw)


def _submessage(number: int, content: bytes) -> bytes:
    size = bytes([len(content)]) if len(content) < 0x80 else bytes([len(content) & 0x7F | 0x80, len(content) >> 7])
    return bytes([number << 3 | 2]) + size + content
