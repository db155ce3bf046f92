"""A scan of protobuf wire bytes that runs before any message object exists (T20, T22).

The attack it stops: a repeated header costs two bytes on the wire and a hundred in memory, so a 10 MiB message becomes most of a
gigabyte and seconds of a blocked event loop before the first "at most 64 headers" check can run; and because protobuf merges
what is repeated, a second copy of a submessage silently overrides what was validated in the first.

A `MessageRule` is derived from a message's descriptor once, at import. `scan` then walks the bytes without allocating per field and refuses
unknown fields, wrong wire types, groups, a singular field or a oneof that occurs twice, too many repetitions of a field, too many
fields, too deep nesting, and too many bytes outside the one opaque field (the body), which is never looked into.
What the scan accepts, the protobuf parser reads the same way; a property test ties the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIRE_TYPES: Mapping[int, int] = {
    FieldDescriptor.TYPE_DOUBLE: _FIXED64,
    FieldDescriptor.TYPE_FLOAT: _FIXED32,
    FieldDescriptor.TYPE_INT64: _VARINT,
    FieldDescriptor.TYPE_UINT64: _VARINT,
    FieldDescriptor.TYPE_INT32: _VARINT,
    FieldDescriptor.TYPE_FIXED64: _FIXED64,
    FieldDescriptor.TYPE_FIXED32: _FIXED32,
    FieldDescriptor.TYPE_BOOL: _VARINT,
    FieldDescriptor.TYPE_STRING: _LENGTH,
    FieldDescriptor.TYPE_MESSAGE: _LENGTH,
    FieldDescriptor.TYPE_BYTES: _LENGTH,
    FieldDescriptor.TYPE_UINT32: _VARINT,
    FieldDescriptor.TYPE_ENUM: _VARINT,
    FieldDescriptor.TYPE_SFIXED32: _FIXED32,
    FieldDescriptor.TYPE_SFIXED64: _FIXED64,
    FieldDescriptor.TYPE_SINT32: _VARINT,
    FieldDescriptor.TYPE_SINT64: _VARINT,
}
_MAX_VARINT_BYTES = 10
_MAX_TAG_BYTES = 5
_CONTINUE = 0x80


class WireProblem(StrEnum):
    """Why a scan refused. The closed set is also a metric's label."""

    TRUNCATED = "truncated"
    UNKNOWN_FIELD = "unknown_field"
    DUPLICATE_FIELD = "duplicate_field"
    TOO_MANY_REPEATS = "too_many_repeats"
    TOO_MANY_FIELDS = "too_many_fields"
    TOO_DEEP = "too_deep"
    TOO_LARGE = "too_large"
    BAD_VARINT = "bad_varint"


class WireError(ValueError):
    """The bytes are not an acceptable message.

    Args:
        problem: what is wrong.
        place: full name of the field or message where it was found.
    """

    def __init__(self, problem: WireProblem, place: str) -> None:
        super().__init__(f"{problem} in {place}")
        self.problem = problem
        self.place = place


@dataclass(slots=True)
class FieldRule:
    """How one field may occur."""

    name: str
    wire_type: int
    slot: int
    """Index of the bit that marks it seen; members of one oneof share theirs. -1 where it may repeat."""
    max_repeats: int = 0
    message: MessageRule | None = None
    opaque: bool = False


@dataclass(slots=True)
class MessageRule:
    """What one message may hold: its fields by tag (number and wire type together)."""

    name: str
    fields: dict[int, FieldRule] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """Bounds of one scan."""

    head_bytes: int
    """Everything that is not the opaque field."""
    opaque_bytes: int
    fields: int
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """An accepted message, split."""

    head: bytes
    """The message without the opaque field: what may be parsed."""
    opaque: memoryview | None
    """The opaque field's bytes in place, not copied; None where it is absent."""


def build_rule(
    descriptor: Descriptor,
    *,
    max_repeats: Mapping[str, int] | None = None,
    default_repeats: int = 64,
    opaque: str | None = None,
) -> MessageRule:
    """Derive the rule of a message and everything it can hold.

    Args:
        descriptor: of the outermost message.
        max_repeats: full field name to the number of times it may occur in one parent.
        default_repeats: for repeated fields not named there.
        opaque: full name of the bytes field that is passed on without being looked into.
    """
    return _build(descriptor, dict(max_repeats or {}), default_repeats, opaque, {})


def _build(
    descriptor: Descriptor, max_repeats: dict[str, int], default_repeats: int, opaque: str | None, known: dict[str, MessageRule]
) -> MessageRule:
    if descriptor.full_name in known:
        return known[descriptor.full_name]
    rule = known[descriptor.full_name] = MessageRule(descriptor.full_name)
    slots: dict[str, int] = {}
    for item in descriptor.fields:
        wire_type = _WIRE_TYPES[item.type]
        repeated = item.is_repeated
        if repeated and wire_type != _LENGTH:
            # Packed and unpacked spellings of one field would need a rule each; no message here has one.
            message = f"repeated scalar field {item.full_name} is not supported"
            raise TypeError(message)
        oneof = item.containing_oneof
        slot = -1 if repeated else slots.setdefault(oneof.full_name if oneof else item.full_name, len(slots))
        child = _build(item.message_type, max_repeats, default_repeats, opaque, known) if item.message_type else None
        rule.fields[item.number << 3 | wire_type] = FieldRule(
            name=item.full_name,
            wire_type=wire_type,
            slot=slot,
            max_repeats=max_repeats.get(item.full_name, default_repeats) if repeated else 1,
            message=child,
            opaque=item.full_name == opaque,
        )
    return rule


def scan(data: bytes, rule: MessageRule, limits: WireLimits) -> Scanned:
    """Check `data` against `rule` and split the opaque field off.

    Cost: one pass over the fields, none over the bytes inside them.

    Raises:
        WireError: it is not acceptable.
    """
    if len(data) > limits.head_bytes + limits.opaque_bytes:
        raise WireError(WireProblem.TOO_LARGE, rule.name)
    walk = _Walk(data, limits)
    walk.message(rule, 0, len(data), 1)
    if walk.opaque is None:
        if len(data) > limits.head_bytes:
            raise WireError(WireProblem.TOO_LARGE, rule.name)
        return Scanned(head=data, opaque=None)
    return walk.split(rule)


class _Walk:
    """The state of one scan."""

    __slots__ = ("ancestors", "data", "fields", "limits", "opaque", "path")

    def __init__(self, data: bytes, limits: WireLimits) -> None:
        self.data = data
        self.limits = limits
        self.fields = 0
        self.opaque: tuple[int, int, int] | None = None
        """Where the opaque field's tag starts, where its bytes start, where they end."""
        self.ancestors: list[tuple[int, int, int, int]] = []
        """Submessages around the opaque field, outermost first: tag start, tag, content start, content end."""
        self.path: list[tuple[int, int, int, int]] = []

    def message(self, rule: MessageRule, position: int, end: int, depth: int) -> None:
        if depth > self.limits.depth:
            raise WireError(WireProblem.TOO_DEEP, rule.name)
        seen = 0
        repeats: dict[int, int] = {}
        while position < end:
            start = position
            tag, position = self.varint(position, end, _MAX_TAG_BYTES, rule.name)
            known = rule.fields.get(tag)
            if known is None:
                raise WireError(WireProblem.UNKNOWN_FIELD, rule.name)
            self.fields += 1
            if self.fields > self.limits.fields:
                raise WireError(WireProblem.TOO_MANY_FIELDS, rule.name)
            if known.slot >= 0:
                if seen >> known.slot & 1:
                    raise WireError(WireProblem.DUPLICATE_FIELD, known.name)
                seen |= 1 << known.slot
            else:
                repeats[tag] = count = repeats.get(tag, 0) + 1
                if count > known.max_repeats:
                    raise WireError(WireProblem.TOO_MANY_REPEATS, known.name)
            position = self.value(known, (start, tag), position, end, depth)

    def value(self, known: FieldRule, at: tuple[int, int], position: int, end: int, depth: int) -> int:
        """Step over one value, into it where it is a message; return the position behind it."""
        if known.wire_type == _VARINT:
            return self.varint(position, end, _MAX_VARINT_BYTES, known.name)[1]
        if known.wire_type != _LENGTH:
            size = 8 if known.wire_type == _FIXED64 else 4
        else:
            size, position = self.varint(position, end, _MAX_VARINT_BYTES, known.name)
        stop = position + size
        if stop > end:
            raise WireError(WireProblem.TRUNCATED, known.name)
        if known.opaque:
            self.opaque = (at[0], position, stop)
            self.ancestors = list(self.path)
        elif known.message is not None:
            self.path.append((at[0], at[1], position, stop))
            self.message(known.message, position, stop, depth + 1)
            self.path.pop()
        return stop

    def varint(self, position: int, end: int, max_bytes: int, place: str) -> tuple[int, int]:
        """Read one varint.

        SECURITY: a spelling longer than needed is refused, so that this scan and the parser cannot disagree about it.
        """
        data = self.data
        result = shift = 0
        limit = position + max_bytes
        while position < end:
            if position == limit:
                raise WireError(WireProblem.BAD_VARINT, place)
            byte = data[position]
            position += 1
            result |= (byte & 0x7F) << shift
            if byte < _CONTINUE:
                if result >> 64 or (byte == 0 and shift):
                    raise WireError(WireProblem.BAD_VARINT, place)
                return result, position
            shift += 7
        raise WireError(WireProblem.TRUNCATED, place)

    def split(self, rule: MessageRule) -> Scanned:
        """Cut the opaque field out and shorten the lengths of the submessages around it."""
        if self.opaque is None:
            message = "there is nothing to split"
            raise RuntimeError(message)
        tag_start, start, stop = self.opaque
        if stop - start > self.limits.opaque_bytes:
            raise WireError(WireProblem.TOO_LARGE, rule.name)
        if len(self.data) - (stop - start) > self.limits.head_bytes:
            raise WireError(WireProblem.TOO_LARGE, rule.name)
        low, high, middle = tag_start, stop, b""
        for outer_tag_start, tag, content_start, content_end in reversed(self.ancestors):
            content = self.data[content_start:low] + middle + self.data[high:content_end]
            middle = _encode_varint(tag) + _encode_varint(len(content)) + content
            low, high = outer_tag_start, content_end
        return Scanned(head=self.data[:low] + middle + self.data[high:], opaque=memoryview(self.data)[start:stop])


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= _CONTINUE:
        encoded.append(value & 0x7F | _CONTINUE)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
