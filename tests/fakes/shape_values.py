"""Hypothesis strategies that make values of the catalog's shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from runnerd.capabilities.shapes import F64, Bool, Data, Enum, ListOf, Option, Record, Shape, Text, TupleOf, Unsigned

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def values_of(shape: Shape) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a shape, in Python's form."""
    return _STRATEGIES[type(shape)](shape)


def _record(shape: Record) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({key: values_of(field) for key, (_, field) in zip(shape.keys, shape.fields, strict=True)})


_STRATEGIES: dict[type, Callable[[Any], st.SearchStrategy[Any]]] = {
    Bool: lambda _shape: st.booleans(),
    Unsigned: lambda shape: st.integers(0, shape.maximum),
    F64: lambda _shape: st.floats(allow_nan=False),
    Text: lambda _shape: _TEXT,
    Data: lambda _shape: st.binary(max_size=40),
    Option: lambda shape: st.none() | values_of(shape.inner),
    ListOf: lambda shape: st.lists(values_of(shape.item), max_size=3),
    TupleOf: lambda shape: st.tuples(*(values_of(item) for item in shape.items)),
    Record: _record,
    Enum: lambda shape: st.sampled_from(shape.cases),
}
