from __future__ import annotations

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wasmtime import component

from runnerd.engine import compose as composer
from runnerd.engine.binary_reader import COMPONENT, COMPONENT_PREAMBLE, SORT_TYPE, BinaryReader, CompileRejectedError
from runnerd.engine.bridge import HOST, RUN
from runnerd.engine.compilation import compile_component
from runnerd.engine.component_layout import NotComposableError, read_layout
from runnerd.engine.compose import AUTHOR, PAGES, compose
from runnerd.engine.inspection import inspect_component
from runnerd.engine.outcomes import Completed
from runnerd.engine.profile import EngineProfile
from tests.fakes import guests
from tests.fakes.engine_kit import ALWAYS, EngineKit, post

PAGE = 65_536
EXPORTED = '(core module $m (func (export "f"))) (core instance $i (instantiate $m)) (func $f (canon lift (core func $i "f")))'


@pytest.fixture(scope="module")
def own_kit() -> EngineKit:
    return EngineKit()


def composed(wasm: bytes) -> bytes:
    return compose(wasm, memories=inspect_component(wasm).memories)


def nested_components(wasm: bytes) -> list[bytes]:
    reader = BinaryReader(memoryview(wasm), len(COMPONENT_PREAMBLE), len(wasm))
    found = []
    while reader.offset < reader.end:
        identifier, body = reader.section()
        if identifier == COMPONENT:
            found.append(wasm[body.offset : body.end])
    return found


@pytest.mark.parametrize("name", guests.guest_names())
def test_guest__of_the_corpus__is_composed_unless_it_is_told_not_to(name: str) -> None:
    wasm = guests.component(name)
    if ";; imports stay" in (guests.GUESTS / f"{name}.wat").read_text(encoding="utf-8"):
        with pytest.raises(NotComposableError):
            compose(wasm, memories=1)
        return
    author = nested_components(compose(wasm, memories=1))[-1]

    # Byte for byte, and a part behind it that measures its memory.
    assert author.startswith(wasm)
    assert PAGES.encode() not in wasm


def test_composed__exports_and_imports__are_the_bridges_and_the_authors(own_kit: EngineKit) -> None:
    compiled = component.Component(own_kit.engine, composed(guests.component("put_bytes")))

    assert set(compiled.type.exports(own_kit.engine)) == {RUN, AUTHOR}
    assert set(compiled.type.imports(own_kit.engine)) == {HOST, "extrunner:host/kv@0.1.0"}


@pytest.mark.parametrize(
    "text",
    [
        f'(import "{HOST}" (instance (export "refuse" (func (param "what" u32) (param "size" u32)))))',
        f'(import "{HOST}@1.0.0" (instance (export "call" (func (param "frame" string) (result string)))))',
        f'{EXPORTED} (export "{RUN}" (func $f))',
        f'{EXPORTED} (export "{PAGES}" (func $f))',
    ],
)
def test_reserved_name__used_by_an_author__is_not_composed_and_gains_nothing(own_kit: EngineKit, text: str) -> None:
    wasm = with_handler(text)
    with pytest.raises(NotComposableError, match="reserved"):
        composed(wasm)
    built = compile_component(wasm)

    assert not built.bridged
    assert "reserved" in built.unbridged_because
    assert own_kit.run(own_kit.load_compiled(built)).outcome.body == b"hello"


def with_handler(text: str) -> bytes:
    hello = (guests.GUESTS / "hello.wat").read_text(encoding="utf-8")
    return guests.assemble(f"{text}\n{hello}")


def test_author_who_exports_run__is_called_by_handler_all_the_same(own_kit: EngineKit) -> None:
    text = """(core module $m (memory (export "memory") 1) (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 0)
        (func (export "run") (param i32 i32) (result i32) unreachable))
      (core instance $i (instantiate $m))
      (func $run (param "frame" string) (result string)
        (canon lift (core func $i "run") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
      (export "run" (func $run))"""
    built = compile_component(with_handler(text))

    assert built.bridged
    assert own_kit.run(own_kit.load_compiled(built)).outcome.body == b"hello"


def test_artifact_without_bridge__loaded_as_bridged__does_not_run(own_kit: EngineKit) -> None:
    """Which path a component takes is the record's word; where that lies, nothing runs."""
    ordinary, bridged = guests.compiled("hello", bridge=False), guests.compiled("hello")
    for built, claimed in ((ordinary, True), (bridged, False)):
        lying = type(built)(artifact=built.artifact, memories=built.memories, bridged=claimed)
        with pytest.raises(Exception, match="does not export"):
            own_kit.load_compiled(lying)


def test_bridge_off__nothing_is_composed(own_kit: EngineKit) -> None:
    assert not compile_component(guests.component("hello"), EngineProfile(bridge=False)).bridged


def test_late_import__runs_without_the_bridge(own_kit: EngineKit) -> None:
    built = guests.compiled("late_import")

    assert (built.bridged, built.unbridged_because) == (False, "it imports something after its first definition")
    assert own_kit.run("late_import").outcome.body == b"late"


def test_type_of_another_world__is_rejected_as_without_the_bridge() -> None:
    for bridge in (True, False):
        with pytest.raises(CompileRejectedError, match=r"storage\.delete is imported with another type"):
            compile_component(guests.component("storage_of_another_type"), EngineProfile(bridge=bridge))
    bytes_of_another_type = """(import "alga:extension/ui-proxy" (instance $p (export "call-route" (func (param "route" string)))))
      (core func $call (canon lower (func $p "call-route") (memory $memory)))
      (core module $m (func (export "handler") (param i32) (result i32) unreachable))
      (core instance $guest (instantiate $m))"""
    with pytest.raises(CompileRejectedError, match=r"ui-proxy\.call-route is imported with another type"):
        compile_component(guests.assemble(bytes_of_another_type))


@pytest.mark.parametrize("types", [1, 63, 64, 65, 127, 128, 8_191, 8_192])
def test_many_types__before_the_first_definition__are_counted(own_kit: EngineKit, types: int) -> None:
    # 64 and 8192 are where a signed number grows by a byte.
    text = "\n".join(f'(type $t{index} (record (field "f{index}" u32)))' for index in range(types))
    wasm = bytes(wasmtime.wat2wasm(f"(component {text} {guests.body_of('hello')})"))
    built = compile_component(wasm)

    assert built.bridged
    assert own_kit.run(own_kit.load_compiled(built)).outcome.body == b"hello"


def test_every_form_of_type__is_stepped_over() -> None:
    text = """
      (type (variant (case "a") (case "b" u32) (case "c" string)))
      (type (flags "x" "y")) (type (tuple u8 s64 f32 char)) (type (result)) (type (result u8)) (type (result (error string)))
      (type (option (list (list u8)))) (type (func)) (type (func (param "a" u32) (result (tuple string bool))))
      (type (enum "one" "two")) (type $r (resource (rep i32))) (type (own $r)) (type (borrow $r)) (type u8)
      (type (component (type $t u8) (import "i" (func (param "x" u8))) (export "e" (instance (export "f" (func))))))
      (type (instance (export "r" (type (sub resource))) (export "t" (type (eq 0))) (alias outer 0 0 (type $o))))"""
    wasm = bytes(wasmtime.wat2wasm(f"(component {text} {guests.body_of('hello')})"))

    assert read_layout(wasm).leading_spaces[SORT_TYPE] >= 16
    assert composed(wasm)


def test_imported_resources__keep_their_identity_through_the_bridge(own_kit: EngineKit) -> None:
    # pollables go from one imported interface into another.
    outcome = own_kit.run("many_pollables").outcome

    assert outcome == EngineKit(bridge=False).run("many_pollables").outcome


@pytest.mark.parametrize(("name", "measured"), [("grow_memory", True), ("two_memories", False)])
def test_peak_memory__is_exact_for_one_memory_and_unknown_for_several(own_kit: EngineKit, name: str, measured: bool) -> None:
    ran = own_kit.run(name)

    assert isinstance(ran.outcome, Completed)
    pages = int.from_bytes(ran.outcome.body or b"", "little")
    assert ran.finished.peak_memory_bytes == (pages * PAGE if measured else None)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1_000, 65_535, 65_536, 200_001])
@pytest.mark.parametrize("kind", ["ascii", "utf-8", "bytes"])
def test_body__of_any_size_and_kind__comes_back(own_kit: EngineKit, size: int, kind: str) -> None:
    whole = {"ascii": b"0123456789abcdefg", "utf-8": "añ→𝄞".encode(), "bytes": bytes(range(255, -1, -1))}[kind]
    body = (whole * (size // len(whole) + 1))[:size]

    assert own_kit.run("echo", post(body)).outcome.body == body


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_body__of_any_bytes__comes_back(own_kit: EngineKit, body: bytes) -> None:
    assert own_kit.run("echo", post(body)).outcome.body == body


def test_imports__that_share_a_type_of_many_exports__are_not_named_again_and_again() -> None:
    exports = "".join(f' (export "f{index}" (func))' for index in range(2_000))
    imports = "".join(f'(import "extrunner:host/kv@0.1.{patch}" (instance (type $kv)))' for patch in range(10))
    put = '(export "put" (func (param "namespace" string)))'
    hello = guests.body_of("hello")
    wasm = bytes(wasmtime.wat2wasm(f"(component (type $kv (instance {put} {exports})) {imports} {hello})"))

    with pytest.raises(NotComposableError, match="too many things"):
        compose(wasm, memories=1)


# --- hostile binaries ------------------------------------------------------------------------------------------------------------------

SUBJECTS = ["hello", "put_bytes", "many_pollables", "two_memories"]


@given(st.sampled_from(SUBJECTS), st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutant__composed_or_not__never_does_more_than_without_the_bridge(own_kit: EngineKit, name: str, data: st.DataObject) -> None:
    wasm = bytearray(guests.component(name))
    for _ in range(data.draw(st.integers(1, 4))):
        wasm[data.draw(st.integers(8, len(wasm) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(len(wasm) // 2, len(wasm)))
    mutant = bytes(wasm[:cut])
    try:
        bridged = compile_component(mutant)
    except CompileRejectedError:
        with pytest.raises(CompileRejectedError):
            compile_component(mutant, EngineProfile(bridge=False))
        return
    ordinary = compile_component(mutant, EngineProfile(bridge=False))
    if bridged.bridged:
        outcomes = [own_kit.run(own_kit.load_compiled(one), grants=ALWAYS).outcome for one in (bridged, ordinary)]
        assert kinds(outcomes[0]) == kinds(outcomes[1])


def kinds(outcome: object) -> object:
    # What breaks the component model's rules is found by the engine's reader on one path and by compiled copies on the other.
    return type(outcome).__name__, outcome.body if isinstance(outcome, Completed) else None


@given(st.binary(max_size=400))
def test_layout__of_any_bytes__is_one_or_an_error(data: bytes) -> None:
    try:
        read_layout(COMPONENT_PREAMBLE + data)
    except NotComposableError:
        return


@given(st.sampled_from(SUBJECTS), st.integers(8, 2_000), st.binary(min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_layout__of_a_damaged_component__is_one_or_an_error(name: str, where: int, damage: bytes) -> None:
    wasm = guests.component(name)
    where = min(where, len(wasm))
    try:
        composer.compose(wasm[:where] + damage + wasm[where + len(damage) :], memories=1)
    except NotComposableError:
        return
