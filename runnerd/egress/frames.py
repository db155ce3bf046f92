"""The frames between the daemon and the egress process: a header of 13 bytes (length u32, kind u8, call u64) and a payload.

Heads are JSON objects, bodies opaque bytes; every CHUNK of an answer but its last has CHUNK_BYTES. The attack it stops: a taken-over
child announces 4 GiB, sends what nobody asked for, or JSON that is no answer. Both ends check kind and length before a byte of the payload
is read.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

from registry.domain.limits import MIB

HEADER: Final = struct.Struct(">IBQ")
KIB: Final = 1024
CHUNK_BYTES: Final = 64 * KIB
NO_CALL: Final = 0


class Kind(IntEnum):
    """What a frame is."""

    READY = 1
    PING = 2
    PONG = 3
    REQUEST = 4
    BODY = 5
    CANCEL = 6
    HEAD = 7
    CHUNK = 8
    END = 9


FROM_DAEMON: Final[Mapping[int, int]] = MappingProxyType(
    {Kind.PING: 0, Kind.REQUEST: 256 * KIB, Kind.BODY: 32 * MIB, Kind.CANCEL: 0},
)
"""Kinds that the child takes, with the largest payload of each."""
FROM_CHILD: Final[Mapping[int, int]] = MappingProxyType(
    {Kind.READY: 4 * KIB, Kind.PONG: 0, Kind.HEAD: 512 * KIB, Kind.CHUNK: CHUNK_BYTES, Kind.END: 4 * KIB},
)
"""Kinds that the daemon takes, with the largest payload of each; JSON escapes make a head longer."""


class FrameError(Exception):
    """The other end broke the framing: it is not ours any more."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it arrived."""

    kind: Kind
    call: int
    payload: bytes

    def document(self) -> dict[str, Any]:
        """Return the payload's JSON object.

        Raises:
            FrameError: it is none.
        """
        try:
            document = json.loads(self.payload)
        except (ValueError, RecursionError) as error:
            message = f"a {self.kind.name} frame is no JSON"
            raise FrameError(message) from error
        if not isinstance(document, dict):
            message = f"a {self.kind.name} frame is no JSON object"
            raise FrameError(message)
        return document


def encode(kind: Kind, call: int = NO_CALL, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    return HEADER.pack(len(payload), kind, call) + payload


def encode_document(kind: Kind, call: int, document: Mapping[str, Any]) -> bytes:
    """Return a whole frame around a JSON object."""
    return encode(kind, call, json.dumps(document, separators=(",", ":")).encode())


def is_taken(frame: bytes, limits: Mapping[int, int]) -> bool:
    """Tell whether the other end takes a whole frame."""
    length, kind, _ = HEADER.unpack_from(frame)
    return bool(length <= limits.get(kind, -1))


async def read_frame(reader: asyncio.StreamReader, limits: Mapping[int, int]) -> Frame | None:
    """Read the next frame; None at the end of the stream.

    Raises:
        FrameError: a kind that this end does not take, a length above its limit, or an end within a frame.
    """
    try:
        length, kind, call = HEADER.unpack(await reader.readexactly(HEADER.size))
    except asyncio.IncompleteReadError as error:
        if error.partial:
            message = "the stream ended within a frame"
            raise FrameError(message) from error
        return None
    limit = limits.get(kind)
    # SECURITY: before a byte of the payload is waited for.
    if limit is None or length > limit:
        message = f"a frame of kind {kind} with {length} bytes is not taken from this end"
        raise FrameError(message)
    try:
        return Frame(Kind(kind), call, await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        message = "the stream ended within a frame"
        raise FrameError(message) from error
