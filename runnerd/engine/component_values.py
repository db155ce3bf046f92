"""Moves Python values of the catalog's shapes into wasmtime's values and back.

The attack it stops: a guest declares its imports itself, so what arrives need not be what the catalog says. Every kind is checked before
the union is read, every length before it is copied.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from runnerd.capabilities.shapes import F64, Bool, Data, Enum, ListOf, Option, Record, Shape, Text, TupleOf, Unsigned
from runnerd.engine import bindings as b


class GuestTypeError(Exception):
    """The guest's type of a function is not the world's. It was not checked at publish, or the artifact is not what was checked."""


class GuestSizeError(Exception):
    """A value of the guest is larger than its shape allows."""


def _wrong(shape: Shape, kind: int) -> NoReturn:
    message = f"expected {type(shape).__name__}, the guest gave a value of kind {kind}"
    raise GuestTypeError(message)


def refuse_size(size: int, maximum: int) -> NoReturn:
    """Raise GuestSizeError."""
    message = f"{size} where at most {maximum} are allowed"
    raise GuestSizeError(message)


# --- guest to host ---------------------------------------------------------------------------------------------------------------------

_UNSIGNED_KINDS = {8: (b.KIND_U8, "u8"), 16: (b.KIND_U16, "u16"), 32: (b.KIND_U32, "u32"), 64: (b.KIND_U64, "u64")}


def lift(shape: Shape, value: Any) -> object:
    """Copy a value out of wasmtime. The value stays wasmtime's.

    Raises:
        GuestTypeError: it is not of this shape.
        GuestSizeError: it is longer than the shape allows.
    """
    return _LIFT[type(shape)](shape, value)


def _expect(shape: Shape, value: Any, kind: int) -> None:
    if value.kind != kind:
        _wrong(shape, value.kind)


def _lift_bool(shape: Bool, value: Any) -> bool:
    _expect(shape, value, b.KIND_BOOL)
    return bool(value.of.boolean)


def _lift_unsigned(shape: Unsigned, value: Any) -> int:
    kind, field = _UNSIGNED_KINDS[shape.bits]
    _expect(shape, value, kind)
    return int(getattr(value.of, field))


def _lift_float(shape: F64, value: Any) -> float:
    _expect(shape, value, b.KIND_F64)
    return float(value.of.f64)


def _lift_text(shape: Text, value: Any) -> str:
    _expect(shape, value, b.KIND_STRING)
    if value.of.string.size > shape.max_bytes:
        refuse_size(value.of.string.size, shape.max_bytes)
    # The engine has checked that it is UTF-8.
    return b.get_name(value.of.string).decode()


def _lift_data(shape: Data, value: Any) -> bytes:
    _expect(shape, value, b.KIND_LIST)
    if value.of.list.size > shape.max_bytes:
        refuse_size(value.of.list.size, shape.max_bytes)
    try:
        return b.read_bytes(value.of.list)
    except TypeError:
        _wrong(shape, b.KIND_LIST)


def _lift_option(shape: Option, value: Any) -> object:
    _expect(shape, value, b.KIND_OPTION)
    return lift(shape.inner, value.of.option[0]) if value.of.option else None


def _lift_list(shape: ListOf, value: Any) -> list[object]:
    _expect(shape, value, b.KIND_LIST)
    items = value.of.list
    if items.size > shape.max_items:
        refuse_size(items.size, shape.max_items)
    return [lift(shape.item, items.data[index]) for index in range(items.size)]


def _lift_tuple(shape: TupleOf, value: Any) -> tuple[object, ...]:
    _expect(shape, value, b.KIND_TUPLE)
    items = value.of.tuple
    if items.size != len(shape.items):
        _wrong(shape, value.kind)
    return tuple(lift(item, items.data[index]) for index, item in enumerate(shape.items))


def _lift_record(shape: Record, value: Any) -> dict[str, object]:
    _expect(shape, value, b.KIND_RECORD)
    entries = value.of.record
    if entries.size != len(shape.fields):
        _wrong(shape, value.kind)
    result: dict[str, object] = {}
    for index, (key, (name, field)) in enumerate(zip(shape.keys, shape.fields, strict=True)):
        entry = entries.data[index]
        if b.get_name(entry.name) != name.encode():
            _wrong(shape, value.kind)
        result[key] = lift(field, entry.val)
    return result


def _lift_enum(shape: Enum, value: Any) -> str:
    _expect(shape, value, b.KIND_ENUM)
    case = b.get_name(value.of.enumeration).decode()
    if case not in shape.cases:
        _wrong(shape, value.kind)
    return case


_LIFT: Mapping[type, Callable[..., object]] = MappingProxyType(
    {
        Bool: _lift_bool,
        Unsigned: _lift_unsigned,
        F64: _lift_float,
        Text: _lift_text,
        Data: _lift_data,
        Option: _lift_option,
        ListOf: _lift_list,
        TupleOf: _lift_tuple,
        Record: _lift_record,
        Enum: _lift_enum,
    }
)


# --- host to guest ---------------------------------------------------------------------------------------------------------------------


def lower(shape: Shape, python: Any, value: Any) -> None:
    """Write a Python value, which has this shape, into a cleared value of wasmtime.

    Containers are attached to their parent before they are filled, so that whatever happens `bindings.delete_value` on the outermost frees
    everything.
    """
    _LOWER[type(shape)](shape, python, value)


def _lower_bool(_shape: Bool, python: object, value: Any) -> None:
    value.of.boolean = bool(python)
    value.kind = b.KIND_BOOL


def _lower_unsigned(shape: Unsigned, python: int, value: Any) -> None:
    kind, field = _UNSIGNED_KINDS[shape.bits]
    setattr(value.of, field, python)
    value.kind = kind


def _lower_float(_shape: F64, python: float, value: Any) -> None:
    value.of.f64 = python
    value.kind = b.KIND_F64


def _lower_text(_shape: Text, python: str, value: Any) -> None:
    b.set_name(value.of.string, python.encode())
    value.kind = b.KIND_STRING


def _lower_enum(_shape: Enum, python: str, value: Any) -> None:
    b.set_name(value.of.enumeration, python.encode())
    value.kind = b.KIND_ENUM


def _lower_data(_shape: Data, python: bytes, value: Any) -> None:
    b.fill_bytes(value.of.list, python)
    value.kind = b.KIND_LIST


def _lower_option(shape: Option, python: object, value: Any) -> None:
    value.of.option = box(shape.inner, python) if python is not None else None
    value.kind = b.KIND_OPTION


def _lower_list(shape: ListOf, python: list[object], value: Any) -> None:
    address = b.new_list(value.of.list, len(python))
    value.kind = b.KIND_LIST
    _lower_items([shape.item] * len(python), python, address)


def _lower_tuple(shape: TupleOf, python: tuple[object, ...], value: Any) -> None:
    address = b.new_tuple(value.of.tuple, len(python))
    value.kind = b.KIND_TUPLE
    _lower_items(shape.items, python, address)


def _lower_items(shapes: Any, python: Any, address: int) -> None:
    for index, (shape, item) in enumerate(zip(shapes, python, strict=True)):
        lower(shape, item, b.Value.from_address(address + index * b.VALUE_BYTES))


def _lower_record(shape: Record, python: Mapping[str, object], value: Any) -> None:
    address = b.new_record(value.of.record, len(shape.fields))
    value.kind = b.KIND_RECORD
    for index, (key, (name, field)) in enumerate(zip(shape.keys, shape.fields, strict=True)):
        entry = b.RecordEntry.from_address(address + index * b.ENTRY_BYTES)
        b.set_name(entry.name, name.encode())
        lower(field, python[key], entry.val)


_LOWER: Mapping[type, Callable[..., None]] = MappingProxyType(
    {
        Bool: _lower_bool,
        Unsigned: _lower_unsigned,
        F64: _lower_float,
        Text: _lower_text,
        Data: _lower_data,
        Option: _lower_option,
        ListOf: _lower_list,
        TupleOf: _lower_tuple,
        Record: _lower_record,
        Enum: _lower_enum,
    }
)


def box(shape: Shape, python: object) -> Any:
    """Lower a value onto wasmtime's heap and return its pointer."""
    content = b.Value()
    try:
        lower(shape, python, content)
    except BaseException:
        b.delete_value(content)
        raise
    return b.boxed(content)


def lower_ok(shape: Shape | None, python: object, value: Any) -> None:
    """Write result<shape, …>'s (ok) case."""
    value.of.result.is_ok = True
    value.of.result.val = box(shape, python) if shape is not None else None
    value.kind = b.KIND_RESULT


def lower_error(shape: Enum, case: str, value: Any) -> None:
    """Write result<…, shape>'s error case."""
    value.of.result.is_ok = False
    value.of.result.val = box(shape, case)
    value.kind = b.KIND_RESULT


def clear(value: Any) -> None:
    """Make a value that wasmtime handed over for writing harmless to free."""
    ctypes.memset(ctypes.addressof(value), 0, b.VALUE_BYTES)


LARGE_BYTES = 64 * 1024


def is_large(value: object) -> bool:
    """Tell whether a value holds bytes whose conversion shows in a process's memory."""
    if isinstance(value, bytes):
        return len(value) > LARGE_BYTES
    if isinstance(value, dict):
        return any(is_large(item) for item in value.values())
    return isinstance(value, list | tuple) and any(is_large(item) for item in value)
