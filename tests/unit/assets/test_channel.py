from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runnerd.assets.channel import MAX_FRAME_BYTES, Channel, ChannelClosedError, Frame, encode


@dataclass(slots=True)
class End:
    channel: Channel
    frames: list[tuple[Frame, int | None]] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


def end_of(sock: socket.socket) -> End:
    closed = asyncio.Event()
    end = End(Channel(sock, on_frame=lambda frame, descriptor: end.frames.append((frame, descriptor)), on_closed=closed.set), closed=closed)
    return end


@pytest.fixture
async def pair() -> AsyncIterator[tuple[End, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = end_of(ours)
    with theirs:
        yield end, theirs
    end.channel.close()
    for _, descriptor in end.frames:
        if descriptor is not None:
            os.close(descriptor)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_frames__arrive_in_order_with_their_descriptors(pair: tuple[End, socket.socket]) -> None:
    end, theirs = pair
    with open(os.devnull) as file:  # noqa: ASYNC230, PTH123
        theirs.send(encode({"id": 1}))
        socket.send_fds(theirs, [encode({"id": 2})], [file.fileno()])
        await settle()
    assert [frame for frame, _ in end.frames] == [{"id": 1}, {"id": 2}]
    assert end.frames[0][1] is None
    descriptor = end.frames[1][1]
    assert descriptor is not None
    assert not os.get_inheritable(descriptor)


async def test_send__descriptor__stays_open_here_and_works_there(pair: tuple[End, socket.socket]) -> None:
    end, theirs = pair
    reading, writing = os.pipe()
    end.channel.send({"id": 1}, writing)
    data, descriptors, _, _ = socket.recv_fds(theirs, 100, 4)
    assert data == b'{"id":1}'
    os.write(descriptors[0], b"x")
    assert os.read(reading, 1) == b"x"
    for descriptor in (reading, writing, *descriptors):
        os.close(descriptor)


@pytest.mark.parametrize(
    "data", [b"x", b"[1]", b"1", b"null", b"{", b"\xff", b"[" * 8_000, b'{"a":"' + b"a" * MAX_FRAME_BYTES + b'"}', b'{"a":NaNx}']
)
async def test_receive__broken_frame__ends_the_channel_once(pair: tuple[End, socket.socket], data: bytes) -> None:
    end, theirs = pair
    theirs.send(data)
    await settle()
    assert end.closed.is_set()
    assert not end.frames
    with pytest.raises(ChannelClosedError):
        end.channel.send({})


async def test_receive__broken_frame_with_a_descriptor__leaks_nothing(pair: tuple[End, socket.socket]) -> None:
    end, theirs = pair
    before = open_descriptors()
    socket.send_fds(theirs, [b"x"], [theirs.fileno()])
    await settle()
    assert end.closed.is_set()
    assert open_descriptors() == before - 1


@pytest.mark.parametrize("count", [2, 4, 50])
async def test_receive__several_descriptors__end_the_channel_and_leak_nothing(pair: tuple[End, socket.socket], count: int) -> None:
    end, theirs = pair
    before = open_descriptors()
    socket.send_fds(theirs, [b"{}"], [theirs.fileno()] * count)
    await settle()
    assert end.closed.is_set()
    assert open_descriptors() == before - 1


async def test_receive__frame_of_the_longest_length__is_read(pair: tuple[End, socket.socket]) -> None:
    end, theirs = pair
    text = "a" * (MAX_FRAME_BYTES - len(b'{"a":""}'))
    theirs.send(encode({"a": text}))
    await settle()
    assert end.frames == [({"a": text}, None)]
    with pytest.raises(ChannelClosedError):
        encode({"a": text + "a"})


async def test_receive__other_end_gone__ends_the_channel(pair: tuple[End, socket.socket]) -> None:
    end, theirs = pair
    theirs.close()
    await settle()
    assert end.closed.is_set()


async def test_send__other_end_does_not_read__ends_the_channel_instead_of_waiting(pair: tuple[End, socket.socket]) -> None:
    end, _ = pair
    with contextlib.suppress(ChannelClosedError):
        for _ in range(100_000):
            end.channel.send({"id": 1})
    assert end.closed.is_set()


async def test_close__is_silent_and_may_be_repeated(pair: tuple[End, socket.socket]) -> None:
    end, theirs = pair
    end.channel.close()
    end.channel.close()
    assert theirs.recv(10) == b""
    assert not end.closed.is_set()
