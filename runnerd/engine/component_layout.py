"""Reads where things stand in a component's binary: what it imports before anything else, and how long each index space is at its end.

That is what composing needs and no more: `compose.py` repeats the leading imports around the component and appends a part to it. Types are
stepped over; of an imported instance's type the names of its exports are kept. What is not known is `NotComposableError`, and the component
runs on the ordinary call path.

Pure Python, no engine. The bytes were inspected before (`inspection.py`), so sizes and counts are bounded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NoReturn

from runnerd.engine.binary_reader import (
    ALIAS,
    ALIAS_OUTER,
    CANON,
    COMPONENT,
    COMPONENT_PREAMBLE,
    CORE_INSTANCE,
    CORE_MODULE,
    CORE_SORT_FUNCTION,
    CORE_SORT_INSTANCE,
    CORE_SORT_MODULE,
    CUSTOM,
    EXPORT,
    IMPORT,
    INSTANCE,
    SORT_COMPONENT,
    SORT_CORE,
    SORT_FUNCTION,
    SORT_INSTANCE,
    SORT_TYPE,
    SORT_VALUE,
    TYPE,
    BinaryReader,
    CompileRejectedError,
)

_CORE: Final = 0x100
"""Added to a core sort, so that both kinds are keys of one counter."""
_MAX_TYPE_DEPTH = 32

Sort = int


def core(sort: int) -> Sort:
    """Return the key of a core sort's index space."""
    return _CORE + sort


class NotComposableError(Exception):
    """A component has a shape that the composer does not know. It can run on the ordinary call path."""


def give_up(why: str) -> NoReturn:
    """Raise NotComposableError."""
    raise NotComposableError(why)


@dataclass(frozen=True, slots=True)
class LeadingImport:
    """One import of the author's component."""

    name: str
    sort: Sort
    index: int
    """In the index space of its sort."""
    exports: tuple[tuple[str, Sort], ...] = ()
    """Of an instance: names and sorts of what it holds."""


@dataclass(slots=True)
class ComponentLayout:
    """The layout of one component."""

    imports: list[LeadingImport] = field(default_factory=list)
    leading: list[bytes] = field(default_factory=list)
    """The sections, headers included, that stand before the first definition: types, imports and aliases."""
    leading_spaces: Counter[Sort] = field(default_factory=Counter)
    """Length of each index space after them."""
    spaces: Counter[Sort] = field(default_factory=Counter)
    """Length of each index space at the end."""
    exports: set[str] = field(default_factory=set)


def read_layout(wasm: bytes) -> ComponentLayout:
    """Read the layout of a component.

    Raises:
        NotComposableError: it has a section, a type or an order that is not known here.
    """
    try:
        return _Walk(wasm).run()
    except CompileRejectedError as exc:
        # It was accepted by the inspection, so this reader is the one that does not understand it.
        raise NotComposableError(str(exc)) from exc


class _Walk:
    """One pass over the sections of a component; nested components and modules are stepped over."""

    def __init__(self, wasm: bytes) -> None:
        self._wasm = wasm
        self._layout = ComponentLayout()
        self._types: list[tuple[tuple[str, Sort], ...] | None] = []
        """Exports of each instance type of the type index space; None for other types."""
        self._is_leading = True

    def run(self) -> ComponentLayout:
        """Walk."""
        reader = BinaryReader(memoryview(self._wasm), len(COMPONENT_PREAMBLE), len(self._wasm))
        while reader.offset < reader.end:
            start = reader.offset
            identifier, body = reader.section()
            if identifier == CUSTOM:
                continue
            if self._is_leading and identifier not in {TYPE, IMPORT, ALIAS}:
                self._is_leading = False
                self._layout.leading_spaces = self._layout.spaces.copy()
            if self._is_leading:
                self._layout.leading.append(self._wasm[start : reader.offset])
            self._section(identifier, body)
        if self._is_leading:
            give_up("it defines nothing")
        return self._layout

    def _section(self, identifier: int, body: BinaryReader) -> None:
        spaces = self._layout.spaces
        if identifier == CORE_MODULE:
            spaces[core(CORE_SORT_MODULE)] += 1
        elif identifier == COMPONENT:
            spaces[SORT_COMPONENT] += 1
        elif identifier == CORE_INSTANCE:
            spaces[core(CORE_SORT_INSTANCE)] += body.u32()
        elif identifier == INSTANCE:
            spaces[SORT_INSTANCE] += body.u32()
        elif identifier in _ENTRIES:
            for _ in range(body.count()):
                _ENTRIES[identifier](self, body)
            if body.offset != body.end:
                give_up(f"a section {identifier} has more in it than it says")
        else:
            give_up(f"a section of kind {identifier}")

    def _type(self, body: BinaryReader) -> None:
        self._types.append(_definition(body, 0))
        self._layout.spaces[SORT_TYPE] += 1

    def _import(self, body: BinaryReader) -> None:
        if not self._is_leading:
            give_up("it imports something after its first definition")
        name = body.external_name()
        sort, type_index = _extern(body)
        if sort not in {SORT_FUNCTION, SORT_TYPE, SORT_INSTANCE}:
            give_up(f"{name} is imported as a thing of sort {sort}")
        exports: tuple[tuple[str, Sort], ...] = ()
        if sort == SORT_INSTANCE:
            known = self._types[type_index] if type_index < len(self._types) else None
            if known is None:
                give_up(f"{name} is an instance of a type that is not defined here")
            exports = known
        elif sort == SORT_TYPE:
            self._types.append(None)
        self._layout.imports.append(LeadingImport(name, sort, self._layout.spaces[sort], exports))
        self._layout.spaces[sort] += 1

    def _alias(self, body: BinaryReader) -> None:
        sort = _sort(body)
        target = body.byte()
        if target == ALIAS_OUTER:
            give_up("a root component refers to something outside")
        body.u32()
        body.name()
        self._enter(sort)

    def _export(self, body: BinaryReader) -> None:
        name = body.external_name()
        sort = _sort(body)
        body.u32()
        if body.byte() == 1:
            _extern(body)
        self._layout.exports.add(name)
        # An export is an index of its own.
        self._enter(sort)

    def _canon(self, body: BinaryReader) -> None:
        kind = body.byte()
        if kind in {0x00, 0x01}:
            # Lift and lower: a zero, a function, options, and for a lift its type.
            body.byte()
            body.u32()
            for _ in range(body.count()):
                _canon_option(body)
            if kind == 0x00:
                body.u32()
            self._layout.spaces[SORT_FUNCTION if kind == 0x00 else core(CORE_SORT_FUNCTION)] += 1
        elif kind in {0x02, 0x03, 0x04}:
            # resource.new, resource.drop, resource.rep
            body.u32()
            self._layout.spaces[core(CORE_SORT_FUNCTION)] += 1
        else:
            give_up(f"a canonical function of kind {kind:#x}")

    def _enter(self, sort: Sort) -> None:
        if sort == SORT_TYPE:
            self._types.append(None)
        self._layout.spaces[sort] += 1


_ENTRIES = {TYPE: _Walk._type, IMPORT: _Walk._import, ALIAS: _Walk._alias, EXPORT: _Walk._export, CANON: _Walk._canon}  # noqa: SLF001


def _sort(body: BinaryReader) -> Sort:
    first, second = body.sort()
    return core(second) if first == SORT_CORE else first


def _extern(body: BinaryReader) -> tuple[Sort, int]:
    """Step over an externdesc; return its sort and the index of its type, -1 where it has none."""
    (first, second), index = body.external_type()
    if first == SORT_VALUE:
        give_up("a value is imported or exported")
    return core(second) if first == SORT_CORE else first, index


def _canon_option(body: BinaryReader) -> None:
    option = body.byte()
    if option in {0x03, 0x04, 0x05}:
        body.u32()
    elif option not in {0x00, 0x01, 0x02}:
        give_up(f"a canonical option {option:#x}")


# --- types -----------------------------------------------------------------------------------------------------------------------------


def _definition(body: BinaryReader, depth: int) -> tuple[tuple[str, Sort], ...] | None:
    """Step over a type; return the exports of an instance type, None for another."""
    if depth > _MAX_TYPE_DEPTH:
        give_up("types are nested too deeply")
    form = body.byte()
    if form == 0x42:  # noqa: PLR2004 - an instance type
        exports = (_declaration(body, depth) for _ in range(body.count()))
        return tuple(export for export in exports if export is not None)
    if form == 0x41:  # noqa: PLR2004 - a component type
        for _ in range(body.count()):
            _declaration(body, depth)
    elif form in _TYPES:
        _TYPES[form](body)
    elif not _is_primitive(form):
        give_up(f"a type of form {form:#x}")
    return None


def _declaration(body: BinaryReader, depth: int) -> tuple[str, Sort] | None:
    """Step over a declaration of an instance or component type; return an export's name and sort."""
    kind = body.byte()
    if kind == 0x01:
        _definition(body, depth + 1)
    elif kind == 0x02:  # noqa: PLR2004 - an alias
        _sort(body)
        # An outer one has a count of levels and an index.
        outer = body.byte() == ALIAS_OUTER
        body.u32()
        _ = body.u32() if outer else body.name()
    elif kind == 0x03:  # noqa: PLR2004 - an import
        body.external_name()
        _extern(body)
    elif kind == 0x04:  # noqa: PLR2004 - an export
        name = body.external_name()
        return name, _extern(body)[0]
    else:
        give_up(f"a declaration of kind {kind:#x} in a type")
    return None


def _is_primitive(byte: int) -> bool:
    return 0x73 <= byte <= 0x7F  # noqa: PLR2004 - string to bool


def _value_type(body: BinaryReader) -> None:
    # A signed number of 33 bits: a single byte with its sign set is a primitive, anything else an index.
    byte = body.byte()
    if _is_primitive(byte):
        return
    if byte & 0xC0 == 0x40:  # noqa: PLR2004 - negative, and none of the primitives
        give_up(f"a primitive type {byte:#x}")
    while byte & 0x80:
        byte = body.byte()


def _optional_type(body: BinaryReader) -> None:
    if body.byte():
        _value_type(body)


def _resource(body: BinaryReader) -> None:
    body.byte()
    if body.byte():
        body.u32()


def _function(body: BinaryReader) -> None:
    _record(body)
    # One result, or none: 1, 0.
    if body.byte() == 0:
        _value_type(body)
    elif body.byte():
        give_up("a function with named results")


def _record(body: BinaryReader) -> None:
    for _ in range(body.count()):
        body.name()
        _value_type(body)


def _variant(body: BinaryReader) -> None:
    for _ in range(body.count()):
        body.name()
        _optional_type(body)
        body.byte()


def _names(body: BinaryReader) -> None:
    for _ in range(body.count()):
        body.name()


def _tuple(body: BinaryReader) -> None:
    for _ in range(body.count()):
        _value_type(body)


def _result(body: BinaryReader) -> None:
    _optional_type(body)
    _optional_type(body)


_TYPES = {
    0x3F: _resource,
    0x40: _function,
    0x68: BinaryReader.u32,  # borrow
    0x69: BinaryReader.u32,  # own
    0x6A: _result,
    0x6B: _value_type,  # option
    0x6D: _names,  # enum
    0x6E: _names,  # flags
    0x6F: _tuple,
    0x70: _value_type,  # list
    0x71: _variant,
    0x72: _record,
}
