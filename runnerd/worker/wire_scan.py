"""A scan of the wire form of a frame's message that runs before any message object exists.

The attack it stops (T20, T22): two bytes of wire become a hundred of memory, so 10 MiB of empty values from an escaped worker become
hundreds of megabytes and many seconds of the daemon's event loop; and protobuf merges repeated singular fields, the last one wins. So:
known fields only, singular fields and oneofs once, bounded count and depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn

from google.protobuf.descriptor import FieldDescriptor

MAX_FIELDS: Final = 16_384
"""Fields of one message, nested ones included. The largest honest call (an invoice of 256 items) has some 9,000."""
MAX_DEPTH: Final = 24
"""Levels of nesting: three of wire for each level of a value; the deepest shape of the catalog has five."""

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_WIRE_TYPES: Final[Mapping[int, int]] = MappingProxyType(
    {
        FieldDescriptor.TYPE_DOUBLE: _I64,
        FieldDescriptor.TYPE_FIXED64: _I64,
        FieldDescriptor.TYPE_SFIXED64: _I64,
        FieldDescriptor.TYPE_FLOAT: _I32,
        FieldDescriptor.TYPE_FIXED32: _I32,
        FieldDescriptor.TYPE_SFIXED32: _I32,
        FieldDescriptor.TYPE_STRING: _LEN,
        FieldDescriptor.TYPE_BYTES: _LEN,
        FieldDescriptor.TYPE_MESSAGE: _LEN,
    }
)
_FIXED_BYTES: Final = {_I64: 8, _I32: 4}
_MAX_VARINT_BYTES: Final = 10
_MORE: Final = 0x80


class WireScanError(ValueError):
    """The bytes are not an acceptable message."""


def _refuse(message: str) -> NoReturn:
    raise WireScanError(message)


def scan_message(payload: bytes, descriptor: Any) -> None:
    """Check the wire form of one message against its descriptor.

    Cost: one step per field; strings and bytes are skipped, not read.

    Raises:
        WireScanError: unknown or repeated singular fields, too many fields, too deep, or malformed.
    """
    _Scan(memoryview(payload)).message(descriptor, 0, len(payload), 0)


class _Scan:
    """One walk over one payload."""

    __slots__ = ("fields_left", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.fields_left = MAX_FIELDS

    def message(self, descriptor: Any, offset: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            _refuse(f"{descriptor.name} is nested too deeply")
        seen: set[int] = set()
        while offset < end:
            tag, offset = self.varint(offset, end)
            field = descriptor.fields_by_number.get(tag >> 3)
            self.check(descriptor, field, tag, seen)
            offset = self.skip(field, offset, end, depth)

    def check(self, descriptor: Any, field: Any, tag: int, seen: set[int]) -> None:
        """Refuse a field that may not stand here; note one that may."""
        self.fields_left -= 1
        if self.fields_left < 0:
            _refuse(f"{descriptor.name} has too many fields")
        # NOTE: a packed repeated scalar would be legal protobuf; these messages have no repeated scalars.
        if field is None or tag & 7 != _WIRE_TYPES.get(field.type, _VARINT):
            _refuse(f"{descriptor.name} has no field {tag >> 3} of wire type {tag & 7}")
        if field.is_repeated:
            return
        # SECURITY: repeated singular fields merge and the last member of a oneof wins; a message built by us never repeats one (T22).
        identity = field.number if field.containing_oneof is None else -1 - field.containing_oneof.index
        if identity in seen:
            _refuse(f"{descriptor.name}.{field.name} is given twice")
        seen.add(identity)

    def skip(self, field: Any, offset: int, end: int, depth: int) -> int:
        """Step over one value, into it where it is a message; return the offset behind it."""
        wire_type = _WIRE_TYPES.get(field.type, _VARINT)
        if wire_type == _VARINT:
            return self.varint(offset, end)[1]
        if wire_type == _LEN:
            length, offset = self.varint(offset, end)
        else:
            length = _FIXED_BYTES[wire_type]
        if length > end - offset:
            _refuse(f"{field.name} ends outside its message")
        if field.message_type is not None:
            self.message(field.message_type, offset, offset + length, depth + 1)
        return offset + length

    def varint(self, offset: int, end: int) -> tuple[int, int]:
        value = 0
        for index in range(min(_MAX_VARINT_BYTES, end - offset)):
            byte = self.view[offset + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < _MORE:
                return value, offset + index + 1
        _refuse("a varint does not end")
