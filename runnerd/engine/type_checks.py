"""Compares the types that a component declares with the shapes of the catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from wasmtime import component

from runnerd.capabilities.shapes import F64, Bool, Data, Enum, ListOf, Option, Record, Shape, Text, TupleOf, Unsigned


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionType:
    """What a function takes and returns: `result`, or result<result, error> where `error` is set."""

    params: tuple[Shape, ...]
    result: Shape | None = None
    error: Enum | None = None


def check_function(declared: component.FuncType, expected: FunctionType) -> str | None:
    """Return what differs, None where nothing does."""
    params = declared.params
    if len(params) != len(expected.params):
        return f"it takes {len(params)} parameters instead of {len(expected.params)}"
    for (name, found), shape in zip(params, expected.params, strict=True):
        if not matches(found, shape):
            return f"parameter {name} differs"
    result = declared.result
    if expected.error is not None:
        same = isinstance(result, component.ResultType) and _optional(result.ok, expected.result) and _optional(result.err, expected.error)
    else:
        same = _optional(result, expected.result)
    return None if same else "the result differs"


def _optional(found: Any, shape: Shape | None) -> bool:
    if found is None or shape is None:
        return found is None and shape is None
    return matches(found, shape)


def matches(found: Any, shape: Shape) -> bool:
    """Tell whether a declared type is exactly this shape, names and order of fields and cases included."""
    return _MATCHES[type(shape)](found, shape)


_UNSIGNED = {16: component.U16, 32: component.U32, 64: component.U64}


def _record(found: Any, shape: Record) -> bool:
    if not isinstance(found, component.RecordType):
        return False
    fields = found.fields
    return len(fields) == len(shape.fields) and all(
        name == expected and matches(kind, inner) for (name, kind), (expected, inner) in zip(fields, shape.fields, strict=True)
    )


def _tuple(found: Any, shape: TupleOf) -> bool:
    if not isinstance(found, component.TupleType):
        return False
    elements = found.elements
    return len(elements) == len(shape.items) and all(matches(kind, inner) for kind, inner in zip(elements, shape.items, strict=True))


_MATCHES: Mapping[type, Callable[[Any, Any], bool]] = MappingProxyType(
    {
        Bool: lambda found, _shape: isinstance(found, component.Bool),
        Unsigned: lambda found, shape: isinstance(found, _UNSIGNED[shape.bits]),
        F64: lambda found, _shape: isinstance(found, component.F64),
        Text: lambda found, _shape: isinstance(found, component.String),
        Data: lambda found, _shape: isinstance(found, component.ListType) and isinstance(found.element, component.U8),
        Enum: lambda found, shape: isinstance(found, component.EnumType) and tuple(found.names) == shape.cases,
        Option: lambda found, shape: isinstance(found, component.OptionType) and matches(found.payload, shape.inner),
        ListOf: lambda found, shape: isinstance(found, component.ListType) and matches(found.element, shape.item),
        TupleOf: _tuple,
        Record: _record,
    }
)
