from __future__ import annotations

import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extrunner.worker.v1 import worker_pb2
from runnerd.worker.frames import (
    FROM_DAEMON,
    FROM_WORKER,
    HEADER,
    HEADER_BYTES,
    MAX_CALL_ID,
    Frame,
    FrameDecoder,
    FrameError,
    FrameKind,
    FrameReader,
    FrameWriter,
    encode_frame,
    encode_header,
    encode_message,
    parse_message,
)

FRAMES = st.lists(
    st.tuples(
        st.sampled_from([FrameKind.HOST_CALL, FrameKind.BODY, FrameKind.DONE, FrameKind.LOG]),
        st.integers(0, MAX_CALL_ID),
        st.binary(max_size=300),
    ),
    max_size=12,
)


@given(FRAMES, st.lists(st.integers(1, 50), max_size=200))
def test_stream__cut_anywhere__gives_the_same_frames(frames: list[tuple[FrameKind, int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(encode_frame(*frame) for frame in frames)
    decoder = FrameDecoder(FROM_WORKER)
    found: list[Frame] = []
    for cut in cuts:
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]
    found += decoder.feed(stream)

    assert [(frame.kind, frame.call_id, frame.payload) for frame in found] == frames
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("limits", [FROM_WORKER, FROM_DAEMON])
def test_length__limit_of_each_kind__is_checked_before_the_payload_comes(limits: dict[FrameKind, int]) -> None:
    for kind, limit in limits.items():
        assert FrameDecoder(limits).feed(encode_header(kind, 1, limit)) == ([] if limit else [Frame(kind, 1, b"")])
        with pytest.raises(FrameError, match="more than"):
            FrameDecoder(limits).feed(encode_header(kind, 1, limit + 1))


def test_length__four_gibibytes__is_refused_with_nothing_held() -> None:
    decoder = FrameDecoder(FROM_WORKER)
    with pytest.raises(FrameError):
        decoder.feed(HEADER.pack(0xFFFFFFFF, FrameKind.BODY, 1))

    assert decoder.buffered_bytes <= HEADER_BYTES


@pytest.mark.parametrize("kind", [0, FrameKind.START, FrameKind.LOAD, FrameKind.HOST_REPLY, FrameKind.CANCEL, FrameKind.DROP, 11, 255])
def test_kind__that_a_worker_may_not_send__is_refused(kind: int) -> None:
    with pytest.raises(FrameError, match="not taken"):
        FrameDecoder(FROM_WORKER).feed(HEADER.pack(0, kind, 1))


@pytest.mark.parametrize("kind", [FrameKind.HELLO, FrameKind.DONE, FrameKind.HOST_CALL, FrameKind.LOG])
def test_kind__that_the_daemon_may_not_send__is_refused(kind: int) -> None:
    with pytest.raises(FrameError, match="not taken"):
        FrameDecoder(FROM_DAEMON).feed(HEADER.pack(0, kind, 1))


def test_max_payload__lowers_every_limit() -> None:
    with pytest.raises(FrameError):
        FrameDecoder(FROM_WORKER, max_payload=10).feed(encode_header(FrameKind.LOG, 1, 11))


def test_kinds__are_those_of_the_proto() -> None:
    names = {name.removeprefix("FRAME_KIND_"): number for name, number in worker_pb2.FrameKind.items()}

    assert {kind.name: int(kind) for kind in FrameKind} == {name: number for name, number in names.items() if number}
    assert set(FROM_WORKER) | set(FROM_DAEMON) == set(FrameKind)


@given(st.binary(max_size=400))
def test_feed__any_bytes__gives_frames_or_a_frame_error(data: bytes) -> None:
    try:
        frames = FrameDecoder(FROM_WORKER).feed(data)
    except FrameError:
        frames = []
    assert sum(HEADER_BYTES + len(frame.payload) for frame in frames) <= len(data)


# --- messages --------------------------------------------------------------------------------------------------------------------------


def test_parse__what_was_encoded__comes_back() -> None:
    call = worker_pb2.HostCall(function=5, arguments=[worker_pb2.Value(text="a"), worker_pb2.Value(data=b"b")])
    (frame,) = FrameDecoder().feed(encode_message(FrameKind.HOST_CALL, 9, call))

    assert parse_message(worker_pb2.HostCall, frame.payload) == call


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"\x08\x01\x08\x02", "given twice"),  # function, function
        (b"\x18\x01", "no field 3"),
        (b"\x0d\x01\x00\x00\x00", "no field 1 of wire type 5"),
        (b"\x12\x05", "ends outside"),
        (b"\x12\x06\x32\x01a\x32\x01b", "given twice"),  # one value, two members of its oneof of the same kind
        (b"\x12\x05\x32\x01a\x10\x01", "given twice"),  # text, then boolean
        (b"\x08", "does not end"),
        (b"\x08" + b"\xff" * 11, "does not end"),
        (b"\x0b\x0c", "wire type 3"),
    ],
)
def test_parse__hostile_form__is_refused(payload: bytes, said: str) -> None:
    with pytest.raises(FrameError, match=said):
        parse_message(worker_pb2.HostCall, payload)


def test_parse__two_mebibytes_of_empty_values__is_refused_before_a_message_exists() -> None:
    with pytest.raises(FrameError, match="too many fields"):
        parse_message(worker_pb2.HostCall, b"\x12\x00" * (1024 * 1024))


def nested(levels: int) -> bytes:
    value = worker_pb2.Value(boolean=True)
    for _ in range(levels):
        value = worker_pb2.Value(list=worker_pb2.ValueList(items=[value]))
    return worker_pb2.HostCall(function=1, arguments=[value]).SerializeToString()


def test_parse__nesting__has_a_bound() -> None:
    assert parse_message(worker_pb2.HostCall, nested(11)).function == 1
    with pytest.raises(FrameError, match="nested too deeply"):
        parse_message(worker_pb2.HostCall, nested(12))


def test_parse__text_that_is_not_utf8__is_refused() -> None:
    with pytest.raises(FrameError):
        parse_message(worker_pb2.HostCall, b"\x12\x03\x32\x01\xff")


@given(st.binary(max_size=200))
def test_parse__any_bytes__is_a_message_or_a_frame_error(payload: bytes) -> None:
    for kind in (worker_pb2.HostCall, worker_pb2.Done, worker_pb2.Log, worker_pb2.Hello):
        try:
            message = parse_message(kind, payload)
        except FrameError:
            continue
        assert message.ByteSize() <= 2 * len(payload) + 16


# --- the blocking side -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def test_writer__message_and_body__leave_together_from_many_threads(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    writer = FrameWriter(ours)
    body = b"b" * 100_000

    def write(number: int) -> None:
        for _ in range(10):
            writer.send(FrameKind.DONE, number, b"", body=body)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()

    def close() -> None:
        for thread in threads:
            thread.join()
        ours.close()

    closer = threading.Thread(target=close)
    closer.start()
    frames = list(FrameReader(theirs, FROM_WORKER).frames())
    closer.join()
    theirs.close()

    assert len(frames) == 80
    for done, following in zip(frames[::2], frames[1::2], strict=True):
        assert (done.kind, following.kind) == (FrameKind.DONE, FrameKind.BODY)
        assert done.call_id == following.call_id
        assert following.payload == body


def test_descriptors__with_load_frames__arrive_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    files = [os.memfd_create(f"file-{number}") for number in range(3)]
    writer = FrameWriter(ours)
    for number, file in enumerate(files):
        os.write(file, str(number).encode())
        writer.send_with_descriptor(FrameKind.LOAD, 0, bytes([number]), file)
        writer.send(FrameKind.DROP, 0, bytes([number]))
        os.close(file)
    ours.close()
    reader = FrameReader(theirs)
    frames = list(reader.frames())
    theirs.close()

    assert [frame.kind for frame in frames] == [FrameKind.LOAD, FrameKind.DROP] * 3
    assert [os.pread(file, 10, 0) for file in reader.descriptors] == [b"0", b"1", b"2"]
    for file in reader.descriptors:
        assert not os.get_inheritable(file)
        os.close(file)


def test_reader__violation__raises(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(HEADER.pack(0, 99, 0))
    with ours, theirs, pytest.raises(FrameError):
        list(FrameReader(theirs).frames())
