"""Values of the catalog's shapes to and from `worker_pb2.Value`, both directions, strict.

The attack it stops: bytes from a worker are hostile (T4). What arrives must have exactly the shape that the catalog gives its function:
kind, bounds, cases, number of fields. Nothing is coerced, so no capability sees a value that a guest's types could not have produced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from extrunner.worker.v1 import worker_pb2
from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.shapes import F64, Bool, Data, Enum, ListOf, Option, Record, Shape, Text, TupleOf, Unsigned


class ValueMismatchError(ValueError):
    """A value does not have the shape that the catalog says."""


def _mismatch(shape: Shape, found: object) -> NoReturn:
    message = f"expected {type(shape).__name__}, found {type(found).__name__ if not isinstance(found, str) else found[:64]}"
    raise ValueMismatchError(message)


# --- checks that both directions share -------------------------------------------------------------------------------------------------


def _text(shape: Text, value: object) -> str:
    if not isinstance(value, str):
        _mismatch(shape, value)
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError as exc:
        error = "a string has unpaired surrogates"
        raise ValueMismatchError(error) from exc
    if size > shape.max_bytes:
        error = f"a string has {size} bytes, more than {shape.max_bytes}"
        raise ValueMismatchError(error)
    return value


def _data(shape: Data, value: object) -> bytes:
    if not isinstance(value, bytes):
        _mismatch(shape, value)
    if len(value) > shape.max_bytes:
        error = f"a value has {len(value)} bytes, more than {shape.max_bytes}"
        raise ValueMismatchError(error)
    return value


def _unsigned(shape: Unsigned, value: object) -> int:
    if type(value) is not int or not 0 <= value <= shape.maximum:
        error = f"a number is not of {shape.bits} bits without sign"
        raise ValueMismatchError(error)
    return value


def _case(shape: Enum, value: object) -> str:
    if not isinstance(value, str) or value not in shape.cases:
        error = f"{shape.name} has no such case"
        raise ValueMismatchError(error)
    return value


def _count(size: int, maximum: int) -> None:
    if size > maximum:
        error = f"a list has {size} items, more than {maximum}"
        raise ValueMismatchError(error)


# --- towards the wire ------------------------------------------------------------------------------------------------------------------


def to_wire(shape: Shape, value: object) -> worker_pb2.Value:
    """Encode a Python value (see `shapes` for what stands for what).

    Raises:
        ValueMismatchError: it has not this shape.
    """
    return _TO_WIRE[type(shape)](shape, value)


def _bool_to_wire(shape: Bool, value: object) -> worker_pb2.Value:
    if not isinstance(value, bool):
        _mismatch(shape, value)
    return worker_pb2.Value(boolean=value)


def _float_to_wire(shape: F64, value: object) -> worker_pb2.Value:
    if not isinstance(value, float):
        _mismatch(shape, value)
    return worker_pb2.Value(float=value)


def _option_to_wire(shape: Option, value: object) -> worker_pb2.Value:
    if value is None:
        return worker_pb2.Value(none=_NONE)
    return to_wire(shape.inner, value)


def _list_to_wire(shape: ListOf, value: object) -> worker_pb2.Value:
    if not isinstance(value, list | tuple):
        _mismatch(shape, value)
    _count(len(value), shape.max_items)
    return worker_pb2.Value(list=worker_pb2.ValueList(items=[to_wire(shape.item, item) for item in value]))


def _tuple_to_wire(shape: TupleOf, value: object) -> worker_pb2.Value:
    if not isinstance(value, list | tuple) or len(value) != len(shape.items):
        _mismatch(shape, value)
    items = [to_wire(item, part) for item, part in zip(shape.items, value, strict=True)]
    return worker_pb2.Value(list=worker_pb2.ValueList(items=items))


def _record_to_wire(shape: Record, value: object) -> worker_pb2.Value:
    if not isinstance(value, Mapping) or value.keys() != frozenset(shape.keys):
        error = f"{shape.name} needs exactly the fields {', '.join(shape.keys)}"
        raise ValueMismatchError(error)
    items = [to_wire(field, value[key]) for key, (_, field) in zip(shape.keys, shape.fields, strict=True)]
    return worker_pb2.Value(record=worker_pb2.ValueList(items=items))


# The message is called None, which Python does not let one write after a dot.
_NONE = getattr(worker_pb2, "None")()
_TO_WIRE: Mapping[type, Callable[..., worker_pb2.Value]] = MappingProxyType(
    {
        Bool: _bool_to_wire,
        Unsigned: lambda shape, value: worker_pb2.Value(unsigned=_unsigned(shape, value)),
        F64: _float_to_wire,
        Text: lambda shape, value: worker_pb2.Value(text=_text(shape, value)),
        Data: lambda shape, value: worker_pb2.Value(data=_data(shape, value)),
        Enum: lambda shape, value: worker_pb2.Value(text=_case(shape, value)),
        Option: _option_to_wire,
        ListOf: _list_to_wire,
        TupleOf: _tuple_to_wire,
        Record: _record_to_wire,
    }
)


# --- from the wire ---------------------------------------------------------------------------------------------------------------------

_FIELD: Mapping[type, str] = MappingProxyType(
    {
        Bool: "boolean",
        Unsigned: "unsigned",
        F64: "float",
        Text: "text",
        Data: "data",
        Enum: "text",
        ListOf: "list",
        TupleOf: "list",
        Record: "record",
    }
)


def from_wire(shape: Shape, wire: worker_pb2.Value) -> object:
    """Decode a value of untrusted origin.

    Raises:
        ValueMismatchError: it has not this shape.
    """
    kind = wire.WhichOneof("kind")
    if isinstance(shape, Option):
        return None if kind == "none" else from_wire(shape.inner, wire)
    if kind is None or kind != _FIELD[type(shape)]:
        _mismatch(shape, f"{kind}")
    return _FROM_WIRE[type(shape)](shape, getattr(wire, kind))


def _list_from_wire(shape: ListOf, content: worker_pb2.ValueList) -> list[object]:
    _count(len(content.items), shape.max_items)
    return [from_wire(shape.item, item) for item in content.items]


def _record_from_wire(shape: Record, content: worker_pb2.ValueList) -> dict[str, object]:
    return dict(zip(shape.keys, _items([field for _, field in shape.fields], content.items), strict=True))


def _items(shapes: Sequence[Shape], wires: Sequence[worker_pb2.Value]) -> list[object]:
    if len(wires) != len(shapes):
        error = f"expected {len(shapes)} values, found {len(wires)}"
        raise ValueMismatchError(error)
    return [from_wire(shape, wire) for shape, wire in zip(shapes, wires, strict=True)]


_FROM_WIRE: Mapping[type, Callable[..., object]] = MappingProxyType(
    {
        Bool: lambda _shape, content: content,
        F64: lambda _shape, content: content,
        Unsigned: _unsigned,
        Text: _text,
        Data: _data,
        Enum: _case,
        ListOf: _list_from_wire,
        TupleOf: lambda shape, content: tuple(_items(shape.items, content.items)),
        Record: _record_from_wire,
    }
)


# --- whole calls -----------------------------------------------------------------------------------------------------------------------


def arguments_to_wire(function: HostFunction, arguments: Sequence[object]) -> list[worker_pb2.Value]:
    """Encode the arguments of a call.

    Raises:
        ValueMismatchError: count or shape differ from the catalog's.
    """
    if len(arguments) != len(function.params):
        error = f"{function.qualified_name} takes {len(function.params)} arguments"
        raise ValueMismatchError(error)
    return [to_wire(shape, value) for (_, shape), value in zip(function.params, arguments, strict=True)]


def arguments_from_wire(function: HostFunction, wires: Sequence[worker_pb2.Value]) -> tuple[object, ...]:
    """Decode the arguments of a HostCall, in the order of the catalog.

    Raises:
        ValueMismatchError: count or shape differ from the catalog's: a violation of the worker's.
    """
    return tuple(_items([shape for _, shape in function.params], wires))


def reply_to_wire(function: HostFunction, value: object = None, *, error: str | None = None) -> worker_pb2.HostReply:
    """Encode the answer to a call: a value of the function's result, or a case of its error.

    Raises:
        ValueMismatchError: the answer does not fit the function.
    """
    if error is not None:
        if function.error is None:
            message = f"{function.qualified_name} has no error cases"
            raise ValueMismatchError(message)
        return worker_pb2.HostReply(error=_case(function.error, error))
    if function.result is None:
        if value is not None:
            message = f"{function.qualified_name} returns nothing"
            raise ValueMismatchError(message)
        return worker_pb2.HostReply(ok=worker_pb2.Value(none=_NONE))
    return worker_pb2.HostReply(ok=to_wire(function.result, value))


def reply_from_wire(function: HostFunction, reply: worker_pb2.HostReply) -> tuple[object, str | None]:
    """Decode an answer into (value, error case); the case is None where the call succeeded.

    Raises:
        ValueMismatchError: the answer does not fit the function.
    """
    outcome = reply.WhichOneof("outcome")
    if outcome == "error":
        if function.error is None:
            message = f"{function.qualified_name} has no error cases"
            raise ValueMismatchError(message)
        return None, _case(function.error, reply.error)
    if outcome != "ok":
        message = "the reply is empty"
        raise ValueMismatchError(message)
    if function.result is None:
        if reply.ok.WhichOneof("kind") != "none":
            message = f"{function.qualified_name} returns nothing"
            raise ValueMismatchError(message)
        return None, None
    return from_wire(function.result, reply.ok), None
