from __future__ import annotations

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from runnerd.engine.binary_reader import CompileRejectedError
from runnerd.engine.compilation import compile_component, unknown_imports
from runnerd.engine.inspection import MAX_COMPONENT_BYTES, MAX_DEFINED, MAX_FUNCTION_BYTES, MAX_MODULES, inspect_component
from tests.fakes import guests


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def test_hello__shape() -> None:
    shape = inspect_component(guests.component("hello"))

    assert (shape.memories, shape.tables, shape.functions, shape.core_instances) == (1, 0, 3, 2)
    assert shape.imports == ()
    assert "handler" in shape.exports
    assert shape.size == len(guests.component("hello"))


@pytest.mark.parametrize(("name", "unknown"), [("unknown_import", ("evil:package/door",)), ("get_setting", ()), ("sleep_in_poll", ())])
def test_imports__are_told_apart(name: str, unknown: tuple[str, ...]) -> None:
    assert unknown_imports(inspect_component(guests.component(name))) == unknown


@pytest.mark.parametrize(
    ("wasm", "said"),
    [
        (b"", "not a WebAssembly component"),
        (b"\x7fELF" + bytes(100), "not a WebAssembly component"),
        (wat("(module)"), "core module"),
        (wat("(component)"), "handler"),
        (guests.component("hello")[:-3], "ends"),
        (b"\0" * (MAX_COMPONENT_BYTES + 1), "at most"),
    ],
)
def test_not_acceptable__is_rejected_with_a_sentence(wasm: bytes, said: str) -> None:
    with pytest.raises(CompileRejectedError, match=said):
        inspect_component(wasm)


def test_five_memories__are_rejected() -> None:
    with pytest.raises(CompileRejectedError, match="5 linear memories; 1 to 4"):
        inspect_component(guests.component("five_memories"))


def test_two_memories__are_counted() -> None:
    assert inspect_component(guests.component("two_memories")).memories == 2


def leb(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def section(identifier: int, body: bytes) -> bytes:
    return bytes([identifier]) + leb(len(body)) + body


def with_module(*sections: bytes, copies: int = 1) -> bytes:
    """The hello guest, and behind it core modules that nobody instantiates."""
    module = b"\0asm\x01\0\0\0" + b"".join(sections)
    return guests.component("hello") + section(1, module) * copies


# Of each kind: the section, and an entry as short as it can be.
ENTRIES = {
    "types": (1, b"\x60\0\0"),
    "imports": (2, b"\0\0\0\0"),
    "functions": (3, b"\0"),
    "tables": (4, b"\x70\0\0"),
    "memories": (5, b"\0\0"),
    "globals": (6, b"\x7f\0\x41\0\x0b"),
    "exports": (7, b"\0\0\0"),
    "element segments": (9, b"\x01\0\0"),
    "data segments": (11, b"\x01\0"),
}


@pytest.mark.parametrize("what", MAX_DEFINED)
def test_defined__in_modules_that_nobody_instantiates__is_bounded_all_the_same(what: str) -> None:
    identifier, entry = ENTRIES[what]
    most = MAX_DEFINED[what]

    def defining(count: int) -> bytes:
        # In two modules: together is what counts. The hello guest has some of its own.
        half = count // 2
        return with_module(section(identifier, leb(half) + entry * half), copies=2)

    shape = inspect_component(defining(most - 20))
    assert (shape.memories, shape.tables, shape.functions) == (1, 0, 3)
    with pytest.raises(CompileRejectedError, match=f"{what}; at most {most}"):
        inspect_component(defining(most + 2))


def test_defined__more_modules_than_allowed__are_rejected() -> None:
    own = 2
    assert inspect_component(with_module(copies=MAX_MODULES - own)).core_instances == own
    with pytest.raises(CompileRejectedError, match=f"more than {MAX_MODULES} core modules"):
        inspect_component(with_module(copies=MAX_MODULES - own + 1))


@pytest.mark.parametrize(("size", "accepted"), [(MAX_FUNCTION_BYTES, True), (MAX_FUNCTION_BYTES + 1, False)])
def test_function__larger_than_any__is_rejected(size: int, accepted: bool) -> None:
    wasm = with_module(section(10, leb(2) + b"\x02\0\x0b" + leb(size) + bytes(size)))
    if accepted:
        inspect_component(wasm)
    else:
        with pytest.raises(CompileRejectedError, match=f"{size} bytes; at most {MAX_FUNCTION_BYTES}"):
            inspect_component(wasm)


def test_functions__of_which_bodies_are_missing__are_rejected() -> None:
    with pytest.raises(CompileRejectedError):
        inspect_component(with_module(section(10, leb(3) + b"\x02\0\x0b")))


ABORTS = """(core module $module (func (export "handler") (param i32) (result i32) unreachable))
  (core instance $guest (instantiate $module))"""


def multiplied(levels: int) -> bytes:
    """A component in which each level instantiates the one below twice: 2^levels memories from a few hundred bytes."""
    inner = "(component $c0 (core module $m (memory 1)) (core instance (instantiate $m)))"
    for level in range(1, levels + 1):
        inner = f"(component $c{level} {inner} (instance (instantiate $c{level - 1})) (instance (instantiate $c{level - 1})))"
    return guests.assemble(f"{inner} (instance (instantiate $c{levels})) {ABORTS}")


@pytest.mark.parametrize(("levels", "memories"), [(1, 3), (2, 5), (5, 33)])
def test_nested_instantiations__are_multiplied_out(levels: int, memories: int) -> None:
    if memories <= 4:
        assert inspect_component(multiplied(levels)).memories == memories
    else:
        with pytest.raises(CompileRejectedError, match=f"makes {memories} linear memories"):
            inspect_component(multiplied(levels))


def test_nested_too_deeply__is_rejected() -> None:
    with pytest.raises(CompileRejectedError, match="nested too deeply"):
        inspect_component(multiplied(9))


def test_outer_alias_of_a_module__is_counted() -> None:
    text = """(core module $shared (memory 1))
      (component $inner (alias outer 1 $shared (core module $mine)) (core instance (instantiate $mine)) (core instance (instantiate $mine)))
      (instance (instantiate $inner))
      (core module $module (func (export "handler") (param i32) (result i32) unreachable)) (core instance $guest (instantiate $module))"""
    assert inspect_component(guests.assemble(text)).memories == 3


def test_module_from_outside__instantiated__is_rejected() -> None:
    text = """(import "foreign" (core module $foreign))
      (core instance (instantiate $foreign))
      (core module $module (func (export "handler") (param i32) (result i32) unreachable)) (core instance $guest (instantiate $module))"""
    with pytest.raises(CompileRejectedError, match="does not contain itself"):
        inspect_component(guests.assemble(text))


@given(st.data())
def test_mutants__of_a_component__are_accepted_or_rejected_and_nothing_else(data: st.DataObject) -> None:
    wasm = bytearray(guests.component(data.draw(st.sampled_from(["hello", "get_setting", "sleep_in_poll"]))))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(8, len(wasm) - 1))
        if data.draw(st.booleans()):
            wasm[position] = data.draw(st.integers(0, 255))
        else:
            del wasm[position:]
            break
        if len(wasm) < 16:
            break
    try:
        memories = inspect_component(bytes(wasm)).memories
    except CompileRejectedError:
        memories = 1
    assert 1 <= memories <= 4


@given(st.binary(max_size=300))
def test_garbage__behind_the_preamble__is_rejected(garbage: bytes) -> None:
    with pytest.raises(CompileRejectedError):
        inspect_component(b"\0asm\x0d\x00\x01\x00" + garbage)


# --- compiling -------------------------------------------------------------------------------------------------------------------------


def test_compile__import_with_another_type__is_rejected_at_publish() -> None:
    with pytest.raises(CompileRejectedError, match=r"alga:extension/storage\.delete is imported with another type"):
        compile_component(guests.component("storage_of_another_type"))


def test_compile__handler_with_another_type__is_rejected() -> None:
    text = """(component (core module $m (func (export "handler") (param i32))) (core instance $i (instantiate $m))
      (core module $n (memory 1)) (core instance (instantiate $n))
      (alias core export $i "handler" (core func $h)) (func $handler (param "request" u32) (canon lift (core func $h)))
      (export "handler" (func $handler)))"""
    with pytest.raises(CompileRejectedError, match="handler is not the function of the world"):
        compile_component(wat(text))


def test_compile__invalid_code__is_rejected_with_the_engines_reason() -> None:
    wasm = bytearray(guests.component("divide_by_zero"))
    position = bytes(wasm).index(bytes([0x6E, 0x0B]))  # i32.div_u, end
    wasm[position] = 0x7C  # i64.add
    with pytest.raises(CompileRejectedError, match=r"does not compile: .*type mismatch"):
        compile_component(bytes(wasm))


def test_compile__minimum_memory_above_the_ceiling__is_rejected() -> None:
    text = """(core module $module (memory 16385) (func (export "handler") (param i32) (result i32) unreachable))
      (core instance $guest (instantiate $module))"""
    with pytest.raises(CompileRejectedError, match="does not compile"):
        compile_component(guests.assemble(text))
