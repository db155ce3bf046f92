"""The canonical ABI of the component model for the catalog's shapes: values in an image of linear memory, and back.

The bridge (`bridge.wat`) hands whole images of its memory over, so what wasmtime would do value by value happens here on bytes: layouts
are those of the component model's canonical ABI (little-endian, natural alignment), addresses are absolute, an image begins at a known one.

The attack it stops (T35): an image comes from a process's worth of guest code. Every address and length is checked against the image
before it is followed, every length against its shape before it is copied, every case number against its enum. Nothing is allocated by a
number that the image claims.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NoReturn

from runnerd.capabilities.shapes import F64, Bool, Data, Enum, ListOf, Option, Record, Shape, Text, TupleOf, Unsigned
from runnerd.engine.component_values import GuestTypeError, refuse_size

_U32 = struct.Struct("<I")
_PAIR = struct.Struct("<II")
_F64 = struct.Struct("<d")
_UNSIGNED = {8: struct.Struct("<B"), 16: struct.Struct("<H"), 32: _U32, 64: struct.Struct("<Q")}


def _wrong(why: str) -> NoReturn:
    message = f"the guest's memory does not hold what was said: {why}"
    raise GuestTypeError(message)


def align_up(address: int, alignment: int) -> int:
    """Return the next address of this alignment."""
    return (address + alignment - 1) & -alignment


# --- layouts ---------------------------------------------------------------------------------------------------------------------------


@cache
def alignment_of(shape: Shape) -> int:
    """Return the alignment of a shape in memory, in bytes."""
    match shape:
        case Bool() | Enum():
            return 1
        case Unsigned(bits=bits):
            return bits // 8
        case F64():
            return 8
        case Text() | Data() | ListOf():
            return 4
        case Option(inner=inner):
            return alignment_of(inner)
        case TupleOf(items=items):
            return max(map(alignment_of, items), default=1)
        case Record():
            return max((alignment_of(field) for _, field in shape.fields), default=1)


@cache
def size_of(shape: Shape) -> int:
    """Return the size of a shape in memory, in bytes."""
    match shape:
        case Bool() | Enum() | Unsigned() | F64():
            return alignment_of(shape)
        case Text() | Data() | ListOf():
            return _PAIR.size
        case Option(inner=inner):
            return align_up(alignment_of(inner) + size_of(inner), alignment_of(inner))
        case TupleOf() | Record():
            return layout_of(_fields(shape))[1]


def _fields(shape: Record | TupleOf) -> tuple[Shape, ...]:
    return shape.items if isinstance(shape, TupleOf) else tuple(field for _, field in shape.fields)


@cache
def layout_of(shapes: tuple[Shape, ...]) -> tuple[tuple[int, ...], int]:
    """Return the offsets of these shapes one after the other, and the size of the whole."""
    offsets: list[int] = []
    end = 0
    for shape in shapes:
        end = align_up(end, alignment_of(shape))
        offsets.append(end)
        end += size_of(shape)
    return tuple(offsets), align_up(end, max(map(alignment_of, shapes), default=1))


@cache
def flat_of(shape: Shape) -> tuple[str, ...]:
    """Return the core types ("i32", "i64", "f64") that a value of this shape takes as parameters."""
    match shape:
        case Bool() | Enum():
            return ("i32",)
        case Unsigned(bits=bits):
            return ("i64",) if bits == 64 else ("i32",)  # noqa: PLR2004 - the width of i64
        case F64():
            return ("f64",)
        case Text() | Data() | ListOf():
            return ("i32", "i32")
        case Option(inner=inner):
            return ("i32", *flat_of(inner))
        case TupleOf() | Record():
            return tuple(core for field in _fields(shape) for core in flat_of(field))


# --- guest to host ---------------------------------------------------------------------------------------------------------------------


class GuestImage:
    """A part of a guest's memory, as it was handed over.

    Args:
        data: the bytes.
        base: address of the first.
    """

    __slots__ = ("_base", "_data", "_left")

    def __init__(self, data: bytes, base: int) -> None:
        self._data = data
        self._base = base
        self._left = len(data)

    def at(self, address: int, size: int) -> int:
        """Return where `size` bytes at `address` begin in the image.

        Raises:
            GuestTypeError: they do not lie in it.
        """
        start = address - self._base
        # SECURITY: the only place where an address becomes an offset.
        if start < 0 or start + size > len(self._data):
            _wrong("an address outside the image")
        return start

    def take(self, address: int, size: int) -> bytes:
        """Return `size` bytes at `address`. What is empty may have any address."""
        if not size:
            return b""
        start = self.at(address, size)
        # SECURITY: values that lie over each other would be copied many times; ours never do.
        self._left -= size
        if self._left < 0:
            _wrong("more bytes than the image has")
        return self._data[start : start + size]

    def unpack(self, form: struct.Struct, address: int) -> tuple[Any, ...]:
        """Read numbers at `address`."""
        return form.unpack_from(self._data, self.at(address, form.size))


def load(shape: Shape, image: GuestImage, address: int) -> object:
    """Read a value of this shape that lies at `address`.

    Raises:
        GuestTypeError: it is not one.
        GuestSizeError: it is longer than the shape allows.
    """
    return _LOAD[type(shape)](shape, image, address)


def _load_bool(_shape: Bool, image: GuestImage, address: int) -> bool:
    return image.take(address, 1) != b"\0"


def _load_unsigned(shape: Unsigned, image: GuestImage, address: int) -> int:
    return int(image.unpack(_UNSIGNED[shape.bits], address)[0])


def _load_float(_shape: F64, image: GuestImage, address: int) -> float:
    return float(image.unpack(_F64, address)[0])


def _load_enum(shape: Enum, image: GuestImage, address: int) -> str:
    return _case(shape, image.take(address, 1)[0])


def _load_bytes(shape: Text | Data, image: GuestImage, address: int) -> object:
    return _bytes(shape, image, *image.unpack(_PAIR, address))


def _load_list(shape: ListOf, image: GuestImage, address: int) -> list[object]:
    return _list(shape, image, *image.unpack(_PAIR, address))


def _load_option(shape: Option, image: GuestImage, address: int) -> object:
    if image.take(address, 1) == b"\0":
        return None
    return load(shape.inner, image, address + alignment_of(shape.inner))


def _load_record(shape: Record, image: GuestImage, address: int) -> dict[str, object]:
    offsets, _ = layout_of(_fields(shape))
    fields = zip(shape.keys, shape.fields, offsets, strict=True)
    return {key: load(field, image, address + offset) for key, (_, field), offset in fields}


def _load_tuple(shape: TupleOf, image: GuestImage, address: int) -> tuple[object, ...]:
    offsets, _ = layout_of(shape.items)
    return tuple(load(item, image, address + offset) for item, offset in zip(shape.items, offsets, strict=True))


_LOAD: Mapping[type, Callable[..., object]] = MappingProxyType(
    {
        Bool: _load_bool,
        Unsigned: _load_unsigned,
        F64: _load_float,
        Enum: _load_enum,
        Text: _load_bytes,
        Data: _load_bytes,
        ListOf: _load_list,
        Option: _load_option,
        Record: _load_record,
        TupleOf: _load_tuple,
    }
)


def _case(shape: Enum, number: int) -> str:
    if number >= len(shape.cases):
        _wrong(f"{shape.name} has no case {number}")
    return shape.cases[number]


def _bytes(shape: Text | Data, image: GuestImage, address: int, size: int) -> object:
    if size > shape.max_bytes:
        refuse_size(size, shape.max_bytes)
    data = image.take(address, size)
    if isinstance(shape, Data):
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        _wrong("text that is not UTF-8")


def _list(shape: ListOf, image: GuestImage, address: int, count: int) -> list[object]:
    if count > shape.max_items:
        refuse_size(count, shape.max_items)
    size = size_of(shape.item)
    return [load(shape.item, image, address + index * size) for index in range(count)]


def lift_flat(shape: Shape, image: GuestImage, slots: Iterator[int]) -> object:
    """Read a value of this shape that was given as parameters.

    Args:
        shape: of the value.
        image: where addresses point to.
        slots: the parameters in order, each as the unsigned number of its bits; as many as `flat_of` says are taken.

    Raises:
        GuestTypeError: it is not one.
        GuestSizeError: it is longer than the shape allows.
    """
    match shape:
        case Bool():
            return next(slots) != 0
        case Enum():
            return _case(shape, next(slots))
        case Unsigned():
            return next(slots) & shape.maximum
        case F64():
            return float(_F64.unpack(_UNSIGNED[64].pack(next(slots)))[0])
        case Text() | Data():
            return _bytes(shape, image, next(slots), next(slots))
        case ListOf():
            return _list(shape, image, next(slots), next(slots))
        case Option(inner=inner):
            present = next(slots)
            # The slots of an absent value are there as well, and mean nothing.
            payload = iter([next(slots) for _ in flat_of(inner)])
            return lift_flat(inner, image, payload) if present else None
        case TupleOf(items=items):
            return tuple(lift_flat(item, image, slots) for item in items)
        case Record():
            return {key: lift_flat(field, image, slots) for key, (_, field) in zip(shape.keys, shape.fields, strict=True)}


# --- host to guest ---------------------------------------------------------------------------------------------------------------------


class HostImage:
    """Memory for a guest in the making: one part after the other, each at its final address.

    Args:
        base: address of the first byte; aligned to 8.
    """

    __slots__ = ("_base", "_parts", "_size")

    def __init__(self, base: int) -> None:
        self._base = base
        self._parts: list[bytes | bytearray] = []
        self._size = 0

    def reserve(self, size: int, alignment: int) -> tuple[bytearray, int]:
        """Add zeroed memory, to be filled later; return it and its address."""
        self._pad(alignment)
        memory = bytearray(size)
        return memory, self._add(memory)

    def append(self, data: bytes) -> int:
        """Add bytes; return their address."""
        return self._add(data)

    def to_bytes(self) -> bytes:
        """Return the whole image."""
        return b"".join(self._parts)

    def _pad(self, alignment: int) -> None:
        missing = -self._size % alignment
        if missing:
            self._add(bytes(missing))

    def _add(self, data: bytes | bytearray) -> int:
        address = self._base + self._size
        self._parts.append(data)
        self._size += len(data)
        return address


def store(shape: Shape, python: Any, image: HostImage, memory: bytearray, offset: int) -> None:
    """Write a Python value, which has this shape, at `offset` of a reserved part of `image`; what it points to is added behind."""
    _STORE[type(shape)](shape, python, image, memory, offset)


def _store_bool(_shape: Bool, python: object, _image: HostImage, memory: bytearray, offset: int) -> None:
    memory[offset] = bool(python)


def _store_unsigned(shape: Unsigned, python: int, _image: HostImage, memory: bytearray, offset: int) -> None:
    _UNSIGNED[shape.bits].pack_into(memory, offset, python)


def _store_float(_shape: F64, python: float, _image: HostImage, memory: bytearray, offset: int) -> None:
    _F64.pack_into(memory, offset, python)


def _store_enum(shape: Enum, python: str, _image: HostImage, memory: bytearray, offset: int) -> None:
    memory[offset] = shape.cases.index(python)


def _store_text(_shape: Text, python: str, image: HostImage, memory: bytearray, offset: int) -> None:
    data = python.encode()
    _PAIR.pack_into(memory, offset, image.append(data), len(data))


def _store_data(_shape: Data, python: bytes, image: HostImage, memory: bytearray, offset: int) -> None:
    _PAIR.pack_into(memory, offset, image.append(python), len(python))


def _store_list(shape: ListOf, python: list[object], image: HostImage, memory: bytearray, offset: int) -> None:
    size = size_of(shape.item)
    items, address = image.reserve(size * len(python), alignment_of(shape.item))
    _PAIR.pack_into(memory, offset, address, len(python))
    for index, item in enumerate(python):
        store(shape.item, item, image, items, index * size)


def _store_option(shape: Option, python: object, image: HostImage, memory: bytearray, offset: int) -> None:
    if python is not None:
        memory[offset] = 1
        store(shape.inner, python, image, memory, offset + alignment_of(shape.inner))


def _store_record(shape: Record, python: Mapping[str, object], image: HostImage, memory: bytearray, offset: int) -> None:
    offsets, _ = layout_of(_fields(shape))
    for key, (_, field), inner in zip(shape.keys, shape.fields, offsets, strict=True):
        store(field, python[key], image, memory, offset + inner)


def _store_tuple(shape: TupleOf, python: tuple[object, ...], image: HostImage, memory: bytearray, offset: int) -> None:
    offsets, _ = layout_of(shape.items)
    for item, value, inner in zip(shape.items, python, offsets, strict=True):
        store(item, value, image, memory, offset + inner)


_STORE: Mapping[type, Callable[..., None]] = MappingProxyType(
    {
        Bool: _store_bool,
        Unsigned: _store_unsigned,
        F64: _store_float,
        Enum: _store_enum,
        Text: _store_text,
        Data: _store_data,
        ListOf: _store_list,
        Option: _store_option,
        Record: _store_record,
        TupleOf: _store_tuple,
    }
)


def result_image(base: int, shape: Shape | None, error: Enum, value: Any, case: str | None) -> bytes:
    """Return the image of a result<shape, error> that lies at `base`: (ok) of `value`, or the error case where one is given."""
    alignment = max(alignment_of(shape) if shape is not None else 1, alignment_of(error))
    payload = align_up(1, alignment)
    size = align_up(payload + max(size_of(shape) if shape is not None else 0, size_of(error)), alignment)
    image = HostImage(base)
    memory, _ = image.reserve(size, alignment)
    if case is not None:
        memory[0] = 1
        store(error, case, image, memory, payload)
    elif shape is not None:
        store(shape, value, image, memory, payload)
    return image.to_bytes()
