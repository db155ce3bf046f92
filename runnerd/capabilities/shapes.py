"""The shapes of values that cross between a guest and its host: what the catalog's tables are written in. Standard library only.

A value of a shape is, in Python: Bool → bool · U16, U32, U64 → int · F64 → float · Text → str · Data → bytes · Option → None or the value ·
ListOf → list · TupleOf → tuple · Record → dict from field name (snake_case) to value · Enum → str, the case as it is spelled in WIT.

Every shape that a guest can make long has a bound here; both ends check it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

MIB = 1024 * 1024
TEXT_BYTES = 1 * MIB
"""UTF-8 bytes of a string without a bound of its own."""
DATA_BYTES = 10 * MIB
"""Bytes that a guest can hand over in one value of a host call. The ordinary call path carries 2 MiB (N4)."""
LIST_ITEMS = 1_024


@dataclass(frozen=True, slots=True)
class Bool:
    """true or false."""


@dataclass(frozen=True, slots=True)
class Unsigned:
    """An unsigned integer."""

    bits: int

    @property
    def maximum(self) -> int:
        """The largest value."""
        return (1 << self.bits) - 1


@dataclass(frozen=True, slots=True)
class F64:
    """A double."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string of at most `max_bytes` of UTF-8."""

    max_bytes: int = TEXT_BYTES


@dataclass(frozen=True, slots=True)
class Data:
    """list<u8>."""

    max_bytes: int = DATA_BYTES


@dataclass(frozen=True, slots=True)
class Option:
    """option<inner>. Never nested, so that None is unambiguous."""

    inner: Shape


@dataclass(frozen=True, slots=True)
class ListOf:
    """list<item>."""

    item: Shape
    max_items: int = LIST_ITEMS


@dataclass(frozen=True, slots=True)
class TupleOf:
    """tuple<items>."""

    items: tuple[Shape, ...]


@dataclass(frozen=True)
class Record:
    """A record. Order of fields and cases matters: it is the order in memory."""

    name: str
    fields: tuple[tuple[str, Shape], ...]
    """Name as in WIT (kebab-case), shape."""

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names of the fields in Python (snake_case), in order."""
        return tuple(name.replace("-", "_") for name, _ in self.fields)


@dataclass(frozen=True)
class Enum:
    """An enum."""

    name: str
    cases: tuple[str, ...]


Shape = Bool | Unsigned | F64 | Text | Data | Option | ListOf | TupleOf | Record | Enum

U16 = Unsigned(16)
U32 = Unsigned(32)
U64 = Unsigned(64)
TEXT = Text()
DATA = Data()
BOOL = Bool()
FLOAT = F64()


def record(name: str, /, **fields: Shape) -> Record:
    """Make a record; field names are written in snake_case here and are kebab-case in WIT."""
    return Record(name, tuple((key.replace("_", "-"), shape) for key, shape in fields.items()))


def enum(name: str, cases: str) -> Enum:
    """Make an enum from its cases, separated by blanks."""
    return Enum(name, tuple(cases.split()))
