"""The control channel between daemon and child: small JSON frames over a SOCK_SEQPACKET pair, each with at most one descriptor.

One datagram is one frame, so that no length is ever believed before the bytes are there. What is large (the index of an interface, a
file) travels as a descriptor. Both ends treat a frame that breaks the rules as the end of the channel.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from typing import Any

MAX_FRAME_BYTES = 8_192
"""A frame holds at most one path (255 bytes, six times as long in JSON escapes) and two ids."""
MAX_INDEX_BYTES = 4 * 1024 * 1024
"""10,000 files (the most a bundle may hold) with paths of 255 bytes, their digests and sizes."""
MAX_OUTSTANDING = 64
"""Asks of the child that wait for their answer; also keeps both directions within the socket's buffer."""

Frame = dict[str, Any]


class ChannelClosedError(Exception):
    """The other end is gone, broke the framing, or does not read."""


class Channel:
    """One end of the pair, read by the event loop.

    Args:
        sock: this end; owned from now on.
        on_frame: called with each frame and its descriptor (or None), which the callee owns.
        on_closed: called once, when the channel ends for whatever reason other than `close()`.
    """

    def __init__(self, sock: socket.socket, *, on_frame: Callable[[Frame, int | None], None], on_closed: Callable[[], None]) -> None:
        self._sock = sock
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._open = True
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, frame: Frame, descriptor: int | None = None) -> None:
        """Send one frame; `descriptor` is duplicated by the kernel and stays the caller's.

        Raises:
            ChannelClosedError: the channel has ended, or the other end's buffer is full, which ends it.
        """
        if not self._open:
            message = "the control channel is closed"
            raise ChannelClosedError(message)
        data = encode(frame)
        try:
            if descriptor is None:
                self._sock.send(data)
            else:
                socket.send_fds(self._sock, [data], [descriptor])
        except OSError as exc:
            self._end()
            message = f"the control channel failed: {exc}"
            raise ChannelClosedError(message) from exc

    def close(self) -> None:
        """End the channel without a call of `on_closed`; the other end sees end-of-file."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _end(self) -> None:
        if self._open:
            self.close()
            self._on_closed()

    def _readable(self) -> None:
        try:
            frame, descriptor = receive(self._sock)
        except BlockingIOError:
            return
        except ChannelClosedError:
            self._end()
            return
        self._on_frame(frame, descriptor)


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame.

    Raises:
        ChannelClosedError: it is longer than MAX_FRAME_BYTES.
    """
    data = json.dumps(frame, separators=(",", ":")).encode()
    if len(data) > MAX_FRAME_BYTES:
        message = f"a frame of {len(data)} bytes"
        raise ChannelClosedError(message)
    return data


def receive(sock: socket.socket) -> tuple[Frame, int | None]:
    """Receive one frame from a non-blocking socket.

    Raises:
        BlockingIOError: none is there.
        ChannelClosedError: end-of-file, a frame that is too long or no JSON object, or more than one descriptor.
    """
    try:
        data, ancillary, flags, _ = sock.recvmsg(MAX_FRAME_BYTES, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError as exc:
        message = f"the control channel failed: {exc}"
        raise ChannelClosedError(message) from exc
    descriptors = _descriptors(ancillary)
    try:
        return _frame(data, flags, descriptors), descriptors[0] if descriptors else None
    except (ValueError, RecursionError) as exc:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        message = f"the other end broke the framing: {exc}"
        raise ChannelClosedError(message) from exc


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _frame(data: bytes, flags: int, descriptors: list[int]) -> Frame:
    if not data:
        message = "end of file"
        raise ValueError(message)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(descriptors) > 1:
        message = "frame too long or too many descriptors"
        raise ValueError(message)
    frame = json.loads(data)
    if not isinstance(frame, dict):
        message = "not a JSON object"
        raise ValueError(message)  # noqa: TRY004 - one error for every kind of broken frame
    return frame
