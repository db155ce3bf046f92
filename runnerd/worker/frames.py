"""The frames between the daemon and one worker: the codec that both ends share.

A frame is a header of 13 bytes (length of the payload u32, kind u8, call id u64, all big-endian) and a payload (`worker.proto`). Bodies
travel in BODY frames as opaque bytes and are never parsed as a message (T22).

The attack it stops (T4, T20): whoever has escaped into a worker writes any byte to its socket. So the daemon's decoder checks kind and
length before it allocates, takes no kind that a worker may not send, and scans a message's wire form (`wire_scan`) before a message object
exists. Any violation is a `FrameError`; the daemon answers it by killing the worker.

Standard library, protobuf, the generated messages and the catalog's shapes only: the daemon imports this without wasmtime.
"""

from __future__ import annotations

import array
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from extrunner.worker.v1 import worker_pb2
from runnerd.capabilities.shapes import DATA_BYTES
from runnerd.worker.small_messages import parse_canonical
from runnerd.worker.wire_scan import WireScanError, scan_message

PROTOCOL_VERSION: Final = 3
"""Version of these frames, in `Hello.protocol_version`; another one is not used (T39)."""

HEADER: Final = struct.Struct(">IBQ")
HEADER_BYTES: Final = HEADER.size
NO_CALL: Final = 0
"""Call id of the frames that belong to no call (HELLO, LOAD, DROP)."""
MAX_CALL_ID: Final = (1 << 64) - 1

KIB: Final = 1024
MIB: Final = 1024 * KIB
MAX_BODY_BYTES: Final = 32 * MIB
"""A request body at the operator's ceiling (DESIGN §7)."""
MAX_RESPONSE_BYTES: Final = 32 * MIB
"""A response body at the operator's ceiling (DESIGN §7)."""
MAX_HOST_CALL_BYTES: Final = DATA_BYTES + 256 * KIB
"""The largest value that a guest can hand to a host call (`shapes.DATA_BYTES`), and what stands around it."""
READ_CHUNK_BYTES: Final = 256 * KIB

_MAX_DESCRIPTORS_PER_READ: Final = 8

_M = TypeVar("_M", bound=Message)


class FrameKind(IntEnum):
    """What the payload of a frame is; the numbers of worker.proto."""

    HELLO = worker_pb2.FRAME_KIND_HELLO
    LOAD = worker_pb2.FRAME_KIND_LOAD
    START = worker_pb2.FRAME_KIND_START
    BODY = worker_pb2.FRAME_KIND_BODY
    HOST_CALL = worker_pb2.FRAME_KIND_HOST_CALL
    HOST_REPLY = worker_pb2.FRAME_KIND_HOST_REPLY
    CANCEL = worker_pb2.FRAME_KIND_CANCEL
    DONE = worker_pb2.FRAME_KIND_DONE
    LOG = worker_pb2.FRAME_KIND_LOG
    DROP = worker_pb2.FRAME_KIND_DROP


_KINDS: Final[Mapping[int, FrameKind]] = MappingProxyType({int(kind): kind for kind in FrameKind})

FROM_WORKER: Final[Mapping[FrameKind, int]] = MappingProxyType(
    {
        FrameKind.HELLO: 64 * KIB,
        FrameKind.HOST_CALL: MAX_HOST_CALL_BYTES,
        FrameKind.BODY: MAX_RESPONSE_BYTES,
        FrameKind.DONE: 64 * KIB,
        FrameKind.LOG: 64 * KIB,
    }
)
"""Kinds that the daemon takes from a worker, with the largest payload of each."""

FROM_DAEMON: Final[Mapping[FrameKind, int]] = MappingProxyType(
    {
        FrameKind.LOAD: 1 * KIB,
        FrameKind.START: 512 * KIB,
        FrameKind.BODY: MAX_BODY_BYTES,
        FrameKind.HOST_REPLY: 48 * MIB,
        FrameKind.CANCEL: 0,
        FrameKind.DROP: 1 * KIB,
    }
)
"""Kinds that a worker takes from the daemon, with the largest payload of each."""


class FrameError(Exception):
    """The other end broke the framing. The daemon kills that worker; a worker ends itself."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it arrived."""

    kind: FrameKind
    call_id: int
    payload: bytes


def encode_header(kind: FrameKind, call_id: int, length: int) -> bytes:
    """Return the 13 bytes before a payload of `length` bytes."""
    return HEADER.pack(length, kind, call_id)


def encode_frame(kind: FrameKind, call_id: int, payload: bytes = b"") -> bytes:
    """Return a whole frame. For a large body send `encode_header` and the body apart and spare the copy."""
    return HEADER.pack(len(payload), kind, call_id) + payload


def encode_message(kind: FrameKind, call_id: int, message: Message) -> bytes:
    """Return a whole frame around a message."""
    return encode_frame(kind, call_id, message.SerializeToString())


class FrameDecoder:
    """Cuts a stream of bytes into frames.

    Args:
        limits: what this end takes, with the largest payload of each kind: `FROM_WORKER` in the daemon, `FROM_DAEMON` in a worker.
        max_payload: lowers every limit; None leaves them.

    Guarantee: never holds more than one frame of its kind's limit beyond what was fed, and raises before it keeps a byte of a frame that
    is not allowed.
    """

    def __init__(self, limits: Mapping[FrameKind, int] = FROM_WORKER, *, max_payload: int | None = None) -> None:
        self._limits = {int(kind): limit if max_payload is None else min(limit, max_payload) for kind, limit in limits.items()}
        self._buffer = bytearray()
        self._header: tuple[int, int, int] | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the incomplete frame held now."""
        return len(self._buffer)

    @property
    def announced(self) -> tuple[FrameKind, int, int] | None:
        """Kind, call id and payload length of the frame of which only a part has come; None between frames, or before a whole header."""
        if self._header is None:
            return None
        length, kind, call_id = self._header
        return _KINDS[kind], call_id, length

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take the next bytes of the stream and return the frames that they complete, in order.

        Raises:
            FrameError: a kind that this end does not take, or a length above its limit. The decoder must not be used again.
        """
        frames: list[Frame] = []
        if not self._buffer and self._header is None:
            data = self._whole_frames(memoryview(data), frames)
        self._buffer += data
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _whole_frames(self, data: memoryview, frames: list[Frame]) -> memoryview:
        """Cut off the frames that lie whole in `data`, as most do, without buffering them first; return what is left."""
        start, end = 0, len(data)
        while start + HEADER_BYTES <= end:
            length, kind, call_id = HEADER.unpack_from(data, start)
            self._check(kind, length)
            stop = start + HEADER_BYTES + length
            if stop > end:
                break
            frames.append(Frame(_KINDS[kind], call_id, bytes(data[start + HEADER_BYTES : stop])))
            start = stop
        return data[start:]

    def _check(self, kind: int, length: int) -> None:
        # SECURITY: before a byte of the payload is waited for.
        limit = self._limits.get(kind)
        if limit is None:
            message = f"a frame of kind {kind} is not taken from this end"
            raise FrameError(message)
        if length > limit:
            message = f"a frame of kind {kind} has {length} bytes, more than {limit}"
            raise FrameError(message)

    def _next(self) -> Frame | None:
        buffer = self._buffer
        if self._header is None:
            if len(buffer) < HEADER_BYTES:
                return None
            length, kind, call_id = HEADER.unpack_from(buffer)
            self._check(kind, length)
            self._header = (length, kind, call_id)
            del buffer[:HEADER_BYTES]
        length, kind, call_id = self._header
        if len(buffer) < length:
            return None
        with memoryview(buffer) as view:
            payload = bytes(view[:length])
        del buffer[:length]
        self._header = None
        return Frame(_KINDS[kind], call_id, payload)


def parse_message(message_type: type[_M], payload: bytes) -> _M:
    """Parse a payload of untrusted origin.

    Raises:
        FrameError: unknown or repeated singular fields, too many fields, too deep, or not a message at all.
    """
    small = parse_canonical(message_type, payload)
    if small is not None:
        return small
    try:
        scan_message(payload, message_type.DESCRIPTOR)
    except WireScanError as exc:
        raise FrameError(str(exc)) from exc
    message = message_type()
    try:
        message.ParseFromString(payload)
    except DecodeError as exc:
        error = f"not a {message_type.DESCRIPTOR.name}"
        raise FrameError(error) from exc
    return message


# --- the blocking side: workers, and tests that play the daemon ----------------------------------------------------------------------


class FrameWriter:
    """Writes frames to a blocking socket; a message and its body leave together. Safe from many threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, kind: FrameKind, call_id: int, payload: bytes = b"", *, body: bytes | None = None) -> None:
        """Write one frame, and a BODY frame after it where `body` is given.

        Raises:
            OSError: the other end is gone.
        """
        parts = [encode_header(kind, call_id, len(payload)), payload]
        if body is not None:
            parts += [encode_header(FrameKind.BODY, call_id, len(body)), body]
        with self._lock:
            self._write(parts)

    def send_message(self, kind: FrameKind, call_id: int, message: Message, *, body: bytes | None = None) -> None:
        """Write a message, and its body."""
        self.send(kind, call_id, message.SerializeToString(), body=body)

    def send_with_descriptor(self, kind: FrameKind, call_id: int, payload: bytes, descriptor: int) -> None:
        """Write one frame whose first byte carries `descriptor` (LOAD)."""
        data = encode_frame(kind, call_id, payload)
        with self._lock:
            sent = send_descriptor(self._connection, data, descriptor)
            if sent < len(data):
                self._connection.sendall(data[sent:])

    def _write(self, parts: list[bytes]) -> None:
        pending = deque(memoryview(part) for part in parts if part)
        while pending:
            sent = self._connection.sendmsg(pending)
            while pending and sent >= len(pending[0]):
                sent -= len(pending.popleft())
            if sent:
                pending[0] = pending[0][sent:]


def send_descriptor(connection: socket.socket, data: bytes, descriptor: int) -> int:
    """Send the first bytes of `data` with `descriptor` attached (SCM_RIGHTS) and return how many were sent.

    The daemon's non-blocking side uses it for LOAD frames: BlockingIOError means nothing was sent and the descriptor neither; after that
    the rest of `data` goes out as ordinary bytes.
    """
    rights = array.array("i", [descriptor])
    return connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


class FrameReader:
    """Reads frames, and the descriptors beside them, from a blocking socket. One thread."""

    def __init__(self, connection: socket.socket, limits: Mapping[FrameKind, int] = FROM_DAEMON) -> None:
        self._connection = connection
        self._decoder = FrameDecoder(limits)
        self.descriptors: deque[int] = deque()
        """Descriptors received and not yet taken, in order: one for each LOAD frame. The taker closes them."""

    def frames(self) -> Iterator[Frame]:
        """Yield frames until the other end closes.

        Raises:
            FrameError: the other end broke the framing.
            OSError: the socket failed.
        """
        descriptor_bytes = array.array("i").itemsize
        space = socket.CMSG_SPACE(_MAX_DESCRIPTORS_PER_READ * descriptor_bytes)
        while True:
            data, ancillary, _flags, _address = self._connection.recvmsg(READ_CHUNK_BYTES, space, socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(content[: len(content) - len(content) % descriptor_bytes])
                    self.descriptors.extend(received)
            if not data:
                return
            yield from self._decoder.feed(data)
