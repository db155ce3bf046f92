"""Puts the bridge around an author's component, on the binary, before it is compiled (RUNTIME §2).

    outer component
      the author's own leading types, imports and aliases, repeated verbatim    every import keeps its identity, resources included
      the bridge's one import                                                   runnerd/engine/bridge.py answers it
      component $calls    (where the author imports functions that carry bytes) those functions, by images instead of value by value
      component $author   the author's component, byte for byte, and a part behind it that tells the size of its memory
      instance $author    with everything it imports; what carries bytes comes from $calls
      the arena and `run` of bridge.wat                                         exported as RUN
      instance $author                                                          exported as AUTHOR: its types are checked after compiling

$calls is a component of its own because an instance cannot be entered again while it waits for its guest.

The attack it stops (T35): whether a component runs bridged is in the signed artifact record, never read off its exports; reserved names
are refused; what was composed is read again and must contain the author's bytes. A component of a shape that is not known here is
`NotComposableError` and runs on the ordinary call path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import wasmtime

from runnerd.capabilities.catalog import BY_NAME, HostFunction
from runnerd.capabilities.shapes import F64, Bool, Data, Enum, ListOf, Option, Record, Shape, Text, TupleOf, Unsigned
from runnerd.engine import binary_reader as at
from runnerd.engine.binary_reader import COMPONENT_PREAMBLE, BinaryReader
from runnerd.engine.bridge import HOST, MAX_QUESTION_BYTES, RUN
from runnerd.engine.component_layout import ComponentLayout, LeadingImport, NotComposableError, core, give_up, read_layout
from runnerd.engine.linker import interface_of
from runnerd.engine.memory_images import flat_of

AUTHOR = "extrunner-bridge-author"
PAGES = "extrunner-bridge-pages"
_RESERVED = re.compile(r"extrunner[:-]bridge")
_HANDLER = "handler"
_MAX_FLAT_PARAMETERS = 16
_MAX_NAMED_AGAIN = 10_000
"""The two worlds hold some fifty."""

__all__ = ["AUTHOR", "PAGES", "NotComposableError", "compose"]


def compose(wasm: bytes, *, memories: int) -> bytes:
    """Return a component that runs the author's through the bridge.

    Args:
        wasm: the author's component, inspected before.
        memories: linear memories that one instance of it makes.

    Raises:
        NotComposableError: it has a shape that is not known here.
    """
    layout = read_layout(wasm)
    names = [imported.name for imported in layout.imports] + list(layout.exports)
    if any(_RESERVED.match(name) for name in names):
        give_up("it uses a name that is reserved for the bridge")
    if _HANDLER not in layout.exports:
        give_up("it exports no handler")
    measured = memories == 1 and layout.spaces[core(at.CORE_SORT_MEMORY)] > 0
    author = wasm + (_measuring_part(layout) if measured else b"")
    composed = _Outer(layout, author, measured=measured).build()
    # SECURITY: a mistake in what stands before it must not make other bytes the author's component.
    if _components(composed)[-1:] != [author]:
        give_up("the composed binary does not hold the author's as its last component")
    return composed


def _components(wasm: bytes) -> list[bytes]:
    """Return the components nested in a component."""
    reader = BinaryReader(memoryview(wasm), len(COMPONENT_PREAMBLE), len(wasm))
    found = []
    while reader.offset < reader.end:
        identifier, body = reader.section()
        if identifier == at.COMPONENT:
            found.append(wasm[body.offset : body.end])
    return found


# --- encoding --------------------------------------------------------------------------------------------------------------------------


def _leb128(value: int, *, last: int) -> bytes:
    """Encode a number in seven bits a byte; the last byte is at most `last`."""
    encoded = bytearray()
    while value > last:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _u32(value: int) -> bytes:
    return _leb128(value, last=0x7F)


def _value_type(index: int) -> bytes:
    """Encode a defined type where a value type stands: a signed number, whose last byte must leave its sign bit clear."""
    return _leb128(index, last=0x3F)


def _name(text: str) -> bytes:
    data = text.encode()
    return _u32(len(data)) + data


def _extern_name(text: str) -> bytes:
    return b"\0" + _name(text)


def _vector(items: list[bytes]) -> bytes:
    return _u32(len(items)) + b"".join(items)


def _section(identifier: int, body: bytes) -> bytes:
    return bytes([identifier]) + _u32(len(body)) + body


def _sort(sort: int) -> bytes:
    return bytes([0, sort - core(0)]) if sort >= core(0) else bytes([sort])


_STRING, _TYPE_U32 = b"\x73", b"\x79"


def _options(memory: int, realloc: int) -> bytes:
    # UTF-8, a memory, a realloc.
    return _vector([b"\x00", b"\x03" + _u32(memory), b"\x04" + _u32(realloc)])


def _function_type(params: list[tuple[str, bytes]], result: bytes | None) -> bytes:
    results = b"\x01\x00" if result is None else b"\x00" + result
    return b"\x40" + _vector([_name(name) + value for name, value in params]) + results


_CALL_TYPE = _function_type([("frame", _STRING)], _STRING)
_REFUSE_TYPE = _function_type([("what", _TYPE_U32), ("size", _TYPE_U32)], None)
_PAGES_TYPE = _function_type([], _TYPE_U32)


def _host_type(*, calls: bool) -> bytes:
    """Return the type of the instance HOST: `refuse`, and `call` where there are host calls to carry."""
    # Each function's type, and the export that has it.
    declarations = [b"\x01" + _REFUSE_TYPE, b"\x04" + _extern_name("refuse") + b"\x01\x00"]
    if calls:
        declarations += [b"\x01" + _CALL_TYPE, b"\x04" + _extern_name("call") + b"\x01\x01"]
    return b"\x42" + _vector(declarations)


# --- the parts that are WebAssembly text -----------------------------------------------------------------------------------------------


def _modules() -> Mapping[str, str]:
    parts = re.split(r"^;; module (\S+)$", Path(__file__).with_name("bridge.wat").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return MappingProxyType(dict(zip(parts[1::2], parts[2::2], strict=True)))


_MODULES = _modules()
"""Text of each module of bridge.wat, by name. Read when this is imported: a compiler child opens no file later."""


@cache
def _binary(module: str) -> bytes:
    return bytes(wasmtime.wat2wasm(_MODULES[module]))


@cache
def calls_component(functions: tuple[HostFunction, ...]) -> bytes:
    """Assemble $calls for these functions, each exported as "f" and its number; it imports `call` of an instance "host"."""
    types = _WitTypes()
    lifted = "\n".join(_lifted(function, types) for function in functions)
    arena = _MODULES["arena"].replace("(module", "(core module $arena-code", 1)
    text = f"""(component
  (import "host" (instance $host (export "call" (func (param "frame" string) (result string)))))
  {types.text()}
  {arena}
  (core instance $arena (instantiate $arena-code))
  (alias core export $arena "memory" (core memory $memory))
  (alias core export $arena "realloc" (core func $realloc))
  (alias core export $arena "realloc-answer" (core func $realloc-answer))
  (alias core export $arena "reset" (core func $reset))
  (core func $call
    (canon lower (func $host "call") (memory $memory) (realloc $realloc-answer)))
  (core module $code
    (import "arena" "memory" (memory 1 2560))
    (import "arena" "top" (global $top (mut i32)))
    (import "arena" "realloc" (func $realloc (param i32 i32 i32 i32) (result i32)))
    (import "arena" "encode" (func $encode (param i32 i32) (result i32)))
    (import "arena" "decode" (func $decode (param i32 i32)))
    (import "host" "call" (func $call (param i32 i32 i32)))
    {"".join(map(_asking, functions))})
  (core instance $calls (instantiate $code (with "arena" (instance $arena)) (with "host" (instance (export "call" (func $call))))))
  {lifted})"""
    return bytes(wasmtime.wat2wasm(text))


def _asking(function: HostFunction) -> str:
    """Return the core function that asks the host.

    It puts the parameters into slots of eight bytes behind what they point to, the function's number last, and sends everything from the
    beginning of the arena in digits. The answer, in digits as well, lands there. Of a question that is too large only the number is sent:
    its digits would be the host's memory, whatever the guest is granted.
    """
    flat = [core_type for _, shape in function.params for core_type in flat_of(shape)]
    widened = {"i32": "(i64.extend_i32_u {})", "i64": "{}", "f64": "(i64.reinterpret_f64 {})"}
    stores = "\n".join(
        f"(i64.store offset={8 * index} (local.get $slots) {widened[core_type].format(f'(local.get {index})')})"
        for index, core_type in enumerate(flat)
    )
    return f"""
    (func (export "f{function.number}") (param {" ".join(flat)}) (result i32)
      (local $slots i32)
      (local $start i32)
      (local $length i32)
      (local.set $slots (call $realloc (i32.const 0) (i32.const 0) (i32.const 8) (i32.const {8 * len(flat) + 8})))
      {stores}
      (i64.store offset={8 * len(flat)} (local.get $slots) (i64.const {function.number}))
      (local.set $start (i32.const 1024))
      (local.set $length (i32.sub (global.get $top) (i32.const 1024)))
      (if (i32.gt_u (local.get $length) (i32.const {MAX_QUESTION_BYTES}))
        (then (local.set $start (i32.add (local.get $slots) (i32.const {8 * len(flat)}))) (local.set $length (i32.const 8))))
      (call $call (call $encode (local.get $start) (local.get $length)) (i32.shl (local.get $length) (i32.const 1)) (i32.const 32))
      (call $decode (i32.load (i32.const 32)) (i32.load (i32.const 36)))
      (i32.load (i32.const 32)))"""


def _lifted(function: HostFunction, types: _WitTypes) -> str:
    flat = sum(len(flat_of(shape)) for _, shape in function.params)
    if function.error is None or flat > _MAX_FLAT_PARAMETERS:
        message = f"{function.qualified_name} has a form that the bridge does not carry"
        raise ValueError(message)
    params = "".join(f' (param "{name}" {types.of(shape)})' for name, shape in function.params)
    ok = f" {types.of(function.result)}" if function.result is not None else ""
    return f"""
  (func $f{function.number}{params} (result (result{ok} (error {types.of(function.error)})))
    (canon lift (core func $calls "f{function.number}") (memory $memory) (realloc $realloc) (post-return $reset)))
  (export "f{function.number}" (func $f{function.number}))"""


class _WitTypes:
    """Writes shapes as component types; records and enums get a definition and, because exported functions use them, an export."""

    def __init__(self) -> None:
        self._named: dict[Record | Enum, str] = {}
        self._definitions: list[str] = []

    def text(self) -> str:
        """Return the definitions, in an order in which each comes before its use."""
        return "\n  ".join(self._definitions)

    def of(self, shape: Shape) -> str:
        """Return how a shape is written where it is used."""
        match shape:
            case Bool():
                return "bool"
            case Unsigned(bits=bits):
                return f"u{bits}"
            case F64():
                return "f64"
            case Text():
                return "string"
            case Data():
                return "(list u8)"
            case Option(inner=inner):
                return f"(option {self.of(inner)})"
            case ListOf(item=item):
                return f"(list {self.of(item)})"
            case TupleOf(items=items):
                return f"(tuple {' '.join(map(self.of, items))})"
            case Record() | Enum():
                return self._named.get(shape) or self._define(shape)

    def _define(self, shape: Record | Enum) -> str:
        if isinstance(shape, Enum):
            definition = "(enum" + "".join(f' "{case}"' for case in shape.cases) + ")"
        else:
            definition = "(record" + "".join(f' (field "{name}" {self.of(field)})' for name, field in shape.fields) + ")"
        name = f"t{len(self._named) + 1}"
        self._named[shape] = f"${name}"
        self._definitions.append(f'(type ${name}-own {definition}) (export ${name} "{name}" (type ${name}-own))')
        return self._named[shape]


# --- putting it together ---------------------------------------------------------------------------------------------------------------


class _Sections:
    """Sections in the making, and where in its index space each new thing lands.

    Args:
        spaces: lengths of the index spaces so far; advanced.
    """

    def __init__(self, spaces: dict[int, int]) -> None:
        self._spaces = spaces
        self._parts: list[bytes] = []

    def to_bytes(self) -> bytes:
        return b"".join(self._parts)

    def _new(self, sort: int) -> int:
        index = self._spaces.get(sort, 0)
        self._spaces[sort] = index + 1
        return index

    def _one(self, section: int, entry: bytes, sort: int) -> int:
        self._parts.append(_section(section, _vector([entry])))
        return self._new(sort)

    def verbatim(self, sections: list[bytes]) -> None:
        """Add whole sections, which `spaces` has counted already."""
        self._parts += sections

    def core_module(self, binary: bytes) -> int:
        self._parts.append(_section(at.CORE_MODULE, binary))
        return self._new(core(at.CORE_SORT_MODULE))

    def component(self, binary: bytes) -> int:
        self._parts.append(_section(at.COMPONENT, binary))
        return self._new(at.SORT_COMPONENT)

    def core_exports(self, exports: dict[str, tuple[int, int]]) -> int:
        """Make a core instance of these things: name → core sort, index."""
        items = [_name(name) + bytes([sort]) + _u32(index) for name, (sort, index) in exports.items()]
        return self._one(at.CORE_INSTANCE, b"\x01" + _vector(items), core(at.CORE_SORT_INSTANCE))

    def core_instantiate(self, module: int, arguments: dict[str, int]) -> int:
        """Instantiate a core module with core instances."""
        items = [_name(name) + bytes([at.CORE_SORT_INSTANCE]) + _u32(index) for name, index in arguments.items()]
        return self._one(at.CORE_INSTANCE, b"\x00" + _u32(module) + _vector(items), core(at.CORE_SORT_INSTANCE))

    def exports(self, exports: list[tuple[str, int, int]]) -> int:
        """Make an instance of these things: name, sort, index."""
        items = [_extern_name(name) + _sort(sort) + _u32(index) for name, sort, index in exports]
        return self._one(at.INSTANCE, b"\x01" + _vector(items), at.SORT_INSTANCE)

    def instantiate(self, component: int, arguments: list[tuple[str, int, int]]) -> int:
        """Instantiate a component with these things: name, sort, index."""
        items = [_name(name) + _sort(sort) + _u32(index) for name, sort, index in arguments]
        return self._one(at.INSTANCE, b"\x00" + _u32(component) + _vector(items), at.SORT_INSTANCE)

    def alias(self, instance: int, name: str, sort: int) -> int:
        """Name an export of an instance."""
        return self._one(at.ALIAS, _sort(sort) + b"\x00" + _u32(instance) + _name(name), sort)

    def core_alias(self, instance: int, name: str, sort: int) -> int:
        """Name an export of a core instance."""
        return self._one(at.ALIAS, bytes([0, sort]) + b"\x01" + _u32(instance) + _name(name), core(sort))

    def type(self, definition: bytes) -> int:
        return self._one(at.TYPE, definition, at.SORT_TYPE)

    def import_instance(self, name: str, type_index: int) -> int:
        return self._one(at.IMPORT, _extern_name(name) + _sort(at.SORT_INSTANCE) + _u32(type_index), at.SORT_INSTANCE)

    def lower(self, function: int, options: bytes = b"\x00") -> int:
        return self._one(at.CANON, b"\x01\x00" + _u32(function) + options, core(at.CORE_SORT_FUNCTION))

    def lift(self, core_function: int, type_index: int, options: bytes = b"\x00") -> int:
        return self._one(at.CANON, b"\x00\x00" + _u32(core_function) + options + _u32(type_index), at.SORT_FUNCTION)

    def export(self, name: str, sort: int, index: int) -> int:
        return self._one(at.EXPORT, _extern_name(name) + _sort(sort) + _u32(index) + b"\x00", sort)


def _measuring_part(layout: ComponentLayout) -> bytes:
    """Return sections behind the author's: an export that tells the pages of its memory.

    The component makes one memory in all, so every name of one in its index space is a name of that.
    """
    part = _Sections(dict(layout.spaces))
    module = part.core_module(_binary("pages"))
    memory = part.core_exports({"memory": (at.CORE_SORT_MEMORY, 0)})
    instance = part.core_instantiate(module, {"author": memory})
    pages = part.core_alias(instance, "pages", at.CORE_SORT_FUNCTION)
    lifted = part.lift(pages, part.type(_PAGES_TYPE))
    part.export(PAGES, at.SORT_FUNCTION, lifted)
    return part.to_bytes()


@dataclass(slots=True)
class _Outer:
    """The outer component of one author's."""

    layout: ComponentLayout
    author: bytes
    measured: bool

    def build(self) -> bytes:
        """Write it."""
        sections = _Sections(dict(self.layout.leading_spaces))
        sections.verbatim(self.layout.leading)
        carried = {imported.name: found for imported in self.layout.imports if (found := _carried(imported))}
        # Many imports may share one type with many exports, and each export is named again.
        if sum(len(imported.exports) for imported in self.layout.imports if imported.name in carried) > _MAX_NAMED_AGAIN:
            give_up("its imports hold too many things")
        host = sections.import_instance(HOST, sections.type(_host_type(calls=bool(carried))))
        arguments = self._arguments(sections, host, carried)
        author = sections.instantiate(sections.component(self.author), arguments)
        self._run(sections, host, author)
        sections.export(AUTHOR, at.SORT_INSTANCE, author)
        return COMPONENT_PREAMBLE + sections.to_bytes()

    def _arguments(self, sections: _Sections, host: int, carried: Mapping[str, dict[str, HostFunction]]) -> list[tuple[str, int, int]]:
        """Return what the author's component is instantiated with: what is imported, but the functions that carry bytes from $calls."""
        functions = tuple(sorted({function for found in carried.values() for function in found.values()}, key=lambda one: one.number))
        calls = None
        if functions:
            calls = sections.instantiate(sections.component(calls_component(functions)), [("host", at.SORT_INSTANCE, host)])
        arguments: list[tuple[str, int, int]] = []
        for imported in self.layout.imports:
            index = imported.index
            if calls is not None and imported.name in carried:
                index = _rebuilt(sections, imported, carried[imported.name], calls)
            arguments.append((imported.name, imported.sort, index))
        return arguments

    def _run(self, sections: _Sections, host: int, author: int) -> None:
        """Add the arena and `run`, and export it."""
        refuse = sections.lower(sections.alias(host, "refuse", at.SORT_FUNCTION))
        refusing = sections.core_exports({"refuse": (at.CORE_SORT_FUNCTION, refuse)})
        arena = sections.core_instantiate(sections.core_module(_binary("arena")), {})
        memory = sections.core_alias(arena, "memory", at.CORE_SORT_MEMORY)
        realloc = sections.core_alias(arena, "realloc", at.CORE_SORT_FUNCTION)
        handler = sections.lower(sections.alias(author, _HANDLER, at.SORT_FUNCTION), _options(memory, realloc))
        if self.measured:
            pages = sections.lower(sections.alias(author, PAGES, at.SORT_FUNCTION))
        else:
            pages = sections.core_alias(arena, "unknown", at.CORE_SORT_FUNCTION)
        calling = sections.core_exports({"handler": (at.CORE_SORT_FUNCTION, handler), "pages": (at.CORE_SORT_FUNCTION, pages)})
        code = sections.core_instantiate(sections.core_module(_binary("run")), {"arena": arena, "host": refusing, "author": calling})
        run = sections.core_alias(code, "run", at.CORE_SORT_FUNCTION)
        pair = sections.type(b"\x6f" + _vector([_STRING, _STRING]))
        run_type = sections.type(_function_type([("head", _STRING), ("body", _STRING)], _value_type(pair)))
        lifted = sections.lift(run, run_type, _options(memory, realloc))
        sections.export(RUN, at.SORT_FUNCTION, lifted)


def _carried(imported: LeadingImport) -> dict[str, HostFunction]:
    """Return the functions of an imported instance that carry bytes, by name."""
    if imported.sort != at.SORT_INSTANCE:
        return {}
    interface = interface_of(imported.name)
    found = {name: BY_NAME.get((interface, name)) for name, sort in imported.exports if sort == at.SORT_FUNCTION}
    return {name: function for name, function in found.items() if function is not None and function.carries_bytes}


def _rebuilt(sections: _Sections, imported: LeadingImport, carried: dict[str, HostFunction], calls: int) -> int:
    """Make an instance like the imported one whose functions that carry bytes are those of $calls."""
    exports: list[tuple[str, int, int]] = []
    for name, sort in imported.exports:
        if name in carried:
            index = sections.alias(calls, f"f{carried[name].number}", at.SORT_FUNCTION)
        else:
            index = sections.alias(imported.index, name, sort)
        exports.append((name, sort, index))
    return sections.exports(exports)
