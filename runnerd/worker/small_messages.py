"""Small messages accepted by how they would be written: parsed, written again, and compared byte for byte, all in C.

The attacks it stops are those of the scans (T20, T22: unknown fields, a singular field or a oneof twice, numbers in a longer form than
needed), for a tenth of what a scan in Python costs: protobuf writes every field that it holds once, in order, in its shortest form, so
bytes that are equal to that hold nothing else. What is spelled otherwise may still be acceptable; that is for the scan to decide.

Parsing comes before any check here, so it is only for messages so small that the worst of them costs nothing: two bytes of wire become some
hundred of memory.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

MAX_BYTES: Final = 4096
"""The worst message of this size holds some 2,000 empty values: 0.2 MiB for a moment."""

M = TypeVar("M", bound=Message)


def parse_canonical(kind: type[M], raw: bytes) -> M | None:
    """Return the message where `raw` is exactly what writing it gives; None where it is not, is too long, or may nest without end.

    Guarantee: what is returned holds no unknown field, and nothing of `raw` was merged, overridden or dropped. How often fields repeat is
    bounded by the size alone.
    """
    if len(raw) > MAX_BYTES or _is_recursive(kind.DESCRIPTOR):
        return None
    try:
        message = kind.FromString(raw)
    except DecodeError:
        return None
    # Unknown fields are kept and written again; without this they would pass.
    message.DiscardUnknownFields()
    return message if message.SerializeToString(deterministic=True) == raw else None


@cache
def _is_recursive(descriptor: Any) -> bool:
    """Tell whether a message of this kind can hold one of a kind that it is inside of: depth is then for the scan to bound."""
    return _nests(descriptor, ())


def _nests(descriptor: Any, above: tuple[str, ...]) -> bool:
    if descriptor.full_name in above:
        return True
    children = (field.message_type for field in descriptor.fields if field.message_type is not None)
    return any(_nests(child, (*above, descriptor.full_name)) for child in children)
