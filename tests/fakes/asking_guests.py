"""Guests that call one function of the catalog with arguments that a test has spoilt: a guest for each function, made from its shapes.

The arguments lie in the guest's memory as the canonical ABI lays them out, every option present and every list of one item. The request's
body says which word of that memory to overwrite before the call: address and value, four bytes each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.shapes import F64, Bool, Data, Enum, ListOf, Option, Record, Shape, Text, TupleOf, Unsigned
from runnerd.engine.memory_images import HostImage, align_up, alignment_of, flat_of, layout_of, size_of, store
from tests.fakes.guests import assemble

BASE = 4096
BAD_TEXT = 2048
"""Address of two bytes that are no UTF-8."""
MAX_FLAT_PARAMS = 16
_U32 = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class Spoilt:
    """One word to overwrite."""

    what: str
    address: int
    value: int

    @property
    def body(self) -> bytes:
        return _U32.pack(self.address) + _U32.pack(self.value)


def spoilt_arguments(function: HostFunction) -> list[Spoilt]:
    """Return every way to spoil a string or list of the arguments: no UTF-8, an address outside the memory, a length beyond it."""
    image = _arguments(function)
    found: list[Spoilt] = []
    for address, shape in _pairs(_tuple_of(function), BASE, image):
        if isinstance(shape, Text):
            found.append(Spoilt(what=f"invalid UTF-8 at {address}", address=address, value=BAD_TEXT))
        found.append(Spoilt(what=f"pointer at {address}", address=address, value=0x7FFFFF00))
        found.append(Spoilt(what=f"length at {address}", address=address + 4, value=0x7FFFFFFF))
    return found


def asking_guest(function: HostFunction) -> bytes:
    """Return the component that calls a function once and answers 200."""
    types = _Types()
    params = " ".join(f'(param "{name}" {types.of(shape)})' for name, shape in function.params)
    result = types.of(function.result) if function.result is not None else ""
    if function.error is not None:
        result = f"(result {result} (error {types.of(function.error)}))"
    version = "@0.1.0" if function.interface.startswith("extrunner:") else ""
    leaves = list(_leaves(_tuple_of(function), 0))
    flat = [core for _, shape in function.params for core in flat_of(shape)]
    assert len(flat) == len(leaves)
    by_pointer = len(flat) > MAX_FLAT_PARAMS
    returned = _flat_result(function)
    core_params = ["i32"] if by_pointer else flat
    arguments = f"(i32.const {BASE})" if by_pointer else " ".join(f"({load} (i32.const {BASE + offset}))" for load, offset in leaves)
    if returned > 1:
        core_params, arguments = [*core_params, "i32"], f"{arguments} (i32.const 1024)"
    call = f"(call $asked {arguments})"
    data = "".join(f"\\{byte:02x}" for byte in _arguments(function))
    return assemble(
        f"""(import "{function.interface}{version}" (instance $host
          {types.text} (export "{function.name}" (func {params} {f"(result {result})" if result else ""}))))
        (core func $asked (canon lower (func $host "{function.name}") (memory $memory) (realloc $realloc)))
        (core instance $outside (export "asked" (func $asked)))
        (core module $module
          (import "support" "memory" (memory 1))
          (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
          (import "outside" "asked" (func $asked (param {" ".join(core_params)}) {"(result i32)" if returned == 1 else ""}))
          (data (i32.const {BAD_TEXT}) "\\c3\\28")
          (data (i32.const {BASE}) "{data}")
          (func (export "handler") (param $request i32) (result i32)
            (local $body i32)
            (local.set $body (i32.load offset=80 (local.get $request)))
            (if (i32.load offset=84 (local.get $request))
              (then (i32.store (i32.load (local.get $body)) (i32.load offset=4 (local.get $body)))))
            {f"(drop {call})" if returned == 1 else call}
            (call $respond (i32.const 200) (i32.const 64) (i32.const 0))))
        (core instance $guest (instantiate $module (with "support" (instance $support)) (with "outside" (instance $outside))))"""
    )


def _tuple_of(function: HostFunction) -> TupleOf:
    return TupleOf(tuple(shape for _, shape in function.params))


def _arguments(function: HostFunction) -> bytes:
    shape = _tuple_of(function)
    image = HostImage(BASE)
    memory, _ = image.reserve(size_of(shape), alignment_of(shape))
    store(shape, _full(shape), image, memory, 0)
    return image.to_bytes()


_SIMPLE: dict[type, Any] = {Bool: True, Unsigned: 1, F64: 1.0, Text: "xy", Data: b"xy"}


def _full(shape: Shape) -> Any:
    """Return a value of a shape with nothing left out."""
    match shape:
        case Enum(cases=cases):
            return cases[0]
        case Option(inner=inner):
            return _full(inner)
        case ListOf(item=item):
            return [_full(item)]
        case TupleOf(items=items):
            return tuple(_full(item) for item in items)
        case Record():
            return {key: _full(field) for key, (_, field) in zip(shape.keys, shape.fields, strict=True)}
    return _SIMPLE[type(shape)]


def _parts(shape: Record | TupleOf) -> tuple[Shape, ...]:
    return shape.items if isinstance(shape, TupleOf) else tuple(field for _, field in shape.fields)


def _pairs(shape: Shape, address: int, image: bytes) -> Iterator[tuple[int, Shape]]:
    """Yield the address of each pointer and length, those behind pointers included."""
    match shape:
        case Text() | Data():
            yield address, shape
        case ListOf(item=item):
            yield address, shape
            yield from _pairs(item, _U32.unpack_from(image, address - BASE)[0], image)
        case Option(inner=inner):
            yield from _pairs(inner, address + align_up(1, alignment_of(inner)), image)
        case Record() | TupleOf():
            parts = _parts(shape)
            for offset, part in zip(layout_of(parts)[0], parts, strict=True):
                yield from _pairs(part, address + offset, image)


def _leaves(shape: Shape, offset: int) -> Iterator[tuple[str, int]]:
    """Yield how each flat value is loaded, and from where."""
    match shape:
        case Bool() | Enum():
            yield "i32.load8_u", offset
        case Unsigned(bits=bits):
            yield {8: "i32.load8_u", 16: "i32.load16_u", 32: "i32.load", 64: "i64.load"}[bits], offset
        case F64():
            yield "f64.load", offset
        case Text() | Data() | ListOf():
            yield from (("i32.load", offset), ("i32.load", offset + 4))
        case Option(inner=inner):
            yield "i32.load8_u", offset
            yield from _leaves(inner, offset + align_up(1, alignment_of(inner)))
        case Record() | TupleOf():
            parts = _parts(shape)
            for place, part in zip(layout_of(parts)[0], parts, strict=True):
                yield from _leaves(part, offset + place)


def _flat_result(function: HostFunction) -> int:
    inner = len(flat_of(function.result)) if function.result is not None else 0
    return inner if function.error is None else 1 + max(inner, 1)


class _Types:
    """The named types of an interface, in the text of an instance type."""

    def __init__(self) -> None:
        self._names: dict[Shape, str] = {}
        self.text = ""

    def of(self, shape: Shape) -> str:
        match shape:
            case Unsigned(bits=bits):
                return f"u{bits}"
            case Option(inner=inner):
                return f"(option {self.of(inner)})"
            case ListOf(item=item):
                return f"(list {self.of(item)})"
            case TupleOf(items=items):
                return f"(tuple {' '.join(map(self.of, items))})"
            case Record(name=name, fields=fields):
                return self._named(shape, name, "(record {})", [f'(field "{field}" {self.of(inner)})' for field, inner in fields])
            case Enum(name=name, cases=cases):
                return self._named(shape, name, "(enum {})", [f'"{case}"' for case in cases])
        return {Bool: "bool", F64: "f64", Text: "string", Data: "(list u8)"}[type(shape)]

    def _named(self, shape: Shape, name: str, form: str, parts: list[str]) -> str:
        if shape not in self._names:
            number = len(self._names)
            self._names[shape] = f"$t{number}"
            self.text += f'(type $u{number} {form.format(" ".join(parts))}) (export "{name}" (type $t{number} (eq $u{number})))\n'
        return self._names[shape]
