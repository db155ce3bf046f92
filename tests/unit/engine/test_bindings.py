"""One test for each private binding: after an update of wasmtime these say what broke."""

from __future__ import annotations

import ctypes
import gc
import resource
from typing import Any

import pytest
import wasmtime
from wasmtime import component
from wasmtime.component import _enter

from runnerd.engine import bindings
from runnerd.engine.profile import BRIDGE_CORE_INSTANCES, MAX_CORE_INSTANCES, PoolSizes
from tests.fakes import guests
from tests.fakes.engine_kit import EngineKit, post

SMALL_POOL = PoolSizes(memories=2, tables=2, core_instances=4, component_instances=2)


def pooled_engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    bindings.use_pooling(config, SMALL_POOL)
    return wasmtime.Engine(config)


def test_pooling__more_instances_than_the_pool_has__are_refused() -> None:
    engine = pooled_engine()
    module = wasmtime.Module(engine, "(module (memory 1))")
    stores = [wasmtime.Store(engine) for _ in range(3)]
    for store in stores[:2]:
        wasmtime.Instance(store, module, [])
    with pytest.raises(wasmtime.WasmtimeError, match="memor"):
        wasmtime.Instance(stores[2], module, [])


def test_pooling__component_with_too_many_instances__does_not_compile() -> None:
    engine = pooled_engine()
    instances = "(core instance (instantiate $m))" * (MAX_CORE_INSTANCES + BRIDGE_CORE_INSTANCES + 1)
    with pytest.raises(wasmtime.WasmtimeError, match="instances"):
        component.Component(engine, f"(component (core module $m) {instances})")


def test_async__component_that_uses_it__does_not_compile(kit: EngineKit) -> None:
    text = """(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
      (alias core export $i "f" (core func $f)) (func (export "f") async (canon lift (core func $f) async)))"""
    with pytest.raises(wasmtime.WasmtimeError):
        component.Component(kit.engine, text)


def test_async__switched_off_whole__two_resources_lent_at_once_reach_the_host(kit: EngineKit) -> None:
    # With the engine's tasks on, wasmtime 50.0.1 ends this guest with a "BUG: deferred host scope has no call context".
    assert kit.run("poll_two").outcome.body == (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


@pytest.mark.parametrize(
    "module",
    [
        "(module (memory i64 1))",
        "(module (memory 1 1 shared))",
        "(module (type (struct)))",
        "(module (tag))",
        "(module (func (result v128) (i8x16.relaxed_swizzle (v128.const i64x2 0 0) (v128.const i64x2 0 0))))",
        "(module (func $f (return_call $f)))",
        "(module (func (result i64 i64) (i64.add128 (i64.const 0) (i64.const 0) (i64.const 0) (i64.const 0))))",
        "(module (memory 0 (pagesize 1)))",
    ],
)
def test_features__not_needed__are_off(kit: EngineKit, module: str) -> None:
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module(kit.engine, module)


def spin(kit: EngineKit, store: wasmtime.Store) -> None:
    wasmtime.Instance(store, wasmtime.Module(kit.engine, "(module (func $f (loop (br 0))) (start $f))"), [])


def test_epoch_callback__exception__ends_the_guest(kit: EngineKit) -> None:
    kept = list(bindings._EPOCH_CALLBACK)

    def refuse() -> int:
        raise KeyError

    try:
        bindings.install_epoch_callback(refuse)
        store = wasmtime.Store(kit.engine)
        store.set_fuel(10**9)
        bindings.ask_at_epoch(store)
        store.set_epoch_deadline(0)
        kit.engine.increment_epoch()
        with pytest.raises(wasmtime.WasmtimeError, match="host: KeyError"):
            spin(kit, store)
    finally:
        bindings._EPOCH_CALLBACK[:] = kept


def test_epoch_callback__continue__is_asked_again(kit: EngineKit) -> None:
    kept = list(bindings._EPOCH_CALLBACK)
    asked = []

    def go_on() -> int:
        asked.append(1)
        if len(asked) == 3:
            raise InterruptedError
        return 0

    try:
        bindings.install_epoch_callback(go_on)
        store = wasmtime.Store(kit.engine)
        store.set_fuel(10**9)
        bindings.ask_at_epoch(store)
        store.set_epoch_deadline(0)
        kit.engine.increment_epoch()
        with pytest.raises(wasmtime.WasmtimeError, match="InterruptedError"):
            spin(kit, store)
    finally:
        bindings._EPOCH_CALLBACK[:] = kept
    assert len(asked) == 3


def test_take_error__text_of_the_engine__is_returned() -> None:
    pointer = wasmtime.WasmtimeError("höher")._consume()

    assert bindings.take_error(pointer) == "höher"


@pytest.mark.parametrize("data", [b"", b"\0", bytes(range(256)), b"x" * 100_001])
def test_bytes__filled_and_read__are_the_same(data: bytes) -> None:
    value = bindings.Value()
    bindings.fill_bytes(value.of.list, data)
    value.kind = bindings.KIND_LIST
    try:
        assert value.of.list.size == len(data)
        assert bindings.read_bytes(value.of.list) == data
    finally:
        bindings.delete_value(value)


def test_bytes__list_of_something_else__is_refused() -> None:
    value = bindings.Value()
    bindings.new_list(value.of.list, 2)  # booleans
    value.kind = bindings.KIND_LIST
    try:
        with pytest.raises(TypeError):
            bindings.read_bytes(value.of.list)
    finally:
        bindings.delete_value(value)


def test_values__laid_out__as_the_strided_copies_assume() -> None:
    assert bindings.VALUE_BYTES == 32
    assert bindings.CONTENT_OFFSET == 8
    value = bindings.Value()
    value.kind = bindings.KIND_U8
    value.of.u8 = 7
    raw = ctypes.string_at(ctypes.addressof(value), bindings.VALUE_BYTES)
    assert (raw[0], raw[bindings.CONTENT_OFFSET]) == (bindings.KIND_U8, 7)


@pytest.mark.parametrize("make", [bindings.new_list, bindings.new_tuple])
@pytest.mark.parametrize("size", [0, 3])
def test_containers__new__are_harmless_to_free(make: Any, size: int) -> None:
    value = bindings.Value()
    vector, kind = (value.of.list, bindings.KIND_LIST) if make is bindings.new_list else (value.of.tuple, bindings.KIND_TUPLE)
    address = make(vector, size)
    value.kind = kind

    assert bool(address) == bool(size)
    bindings.delete_value(value)


def test_record__new__is_harmless_to_free() -> None:
    value = bindings.Value()
    bindings.new_record(value.of.record, 4)
    value.kind = bindings.KIND_RECORD
    bindings.delete_value(value)

    assert value.of.record.size in {0, 4}


@pytest.mark.parametrize("name", [b"", b"name", "ß".encode()])
def test_names__set__are_got(name: bytes) -> None:
    value = bindings.Value()
    bindings.set_name(value.of.string, name)
    value.kind = bindings.KIND_STRING

    assert bindings.get_name(value.of.string) == name
    bindings.delete_value(value)


def test_boxed__value__moves() -> None:
    inner, outer = bindings.Value(), bindings.Value()
    bindings.set_name(inner.of.string, b"inside")
    inner.kind = bindings.KIND_STRING
    outer.of.option = bindings.boxed(inner)
    outer.kind = bindings.KIND_OPTION

    assert bindings.get_name(outer.of.option[0].of.string) == b"inside"
    bindings.delete_value(outer)


def test_host_function__registration__goes_with_its_linker(kit: EngineKit) -> None:
    gc.collect()
    before = len(bindings._HOST_FUNCTIONS)
    linker = component.Linker(kit.engine)
    with linker.root() as root:
        bindings.add_function(root, "f", lambda *_: None)
    assert len(bindings._HOST_FUNCTIONS) == before + 1
    linker.close()
    assert len(bindings._HOST_FUNCTIONS) == before


def test_resource__dropped_by_the_guest__is_reported(kit: EngineKit) -> None:
    dropped: list[int] = []
    linker = component.Linker(kit.engine)

    def make(context: Any, _arguments: Any, _count: int, results: Any, _result_count: int) -> None:
        results[0].of.resource = bindings.own_resource(context, 41, 5)
        results[0].kind = bindings.KIND_RESOURCE

    taken: list[tuple[int, int]] = []

    def look(context: Any, arguments: Any, _count: int, _results: Any, _result_count: int) -> None:
        taken.append(bindings.take_resource(context, arguments[0].of.resource))

    with linker.root() as root:
        bindings.add_resource(root, "thing", 5, dropped.append)
        bindings.add_function(root, "make", make)
        bindings.add_function(root, "look", look)
    compiled = component.Component(
        kit.engine,
        """(component (import "thing" (type $thing (sub resource)))
             (import "make" (func $make (result (own $thing)))) (import "look" (func $look (param "self" (borrow $thing))))
             (core func $make' (canon lower (func $make))) (core func $look' (canon lower (func $look)))
             (core func $drop (canon resource.drop $thing))
             (core instance $host (export "make" (func $make')) (export "look" (func $look')) (export "drop" (func $drop)))
             (core module $m (import "host" "make" (func $make (result i32))) (import "host" "look" (func $look (param i32)))
               (import "host" "drop" (func $drop (param i32)))
               (func $run (local i32) (local.set 0 (call $make)) (call $look (local.get 0)) (call $drop (local.get 0)))
               (start $run))
             (core instance (instantiate $m (with "host" (instance $host)))))""",
    )
    store = wasmtime.Store(kit.engine)
    store.set_fuel(10**6)
    store.set_epoch_deadline(10**6)
    instance, error = bindings.instantiate(linker, store, compiled)

    assert (instance is not None, error) == (True, "")
    assert taken == [(5, 41)]
    assert dropped == [41]


def test_host_function__any_exception__is_an_error_of_its_own_thread_only(kit: EngineKit) -> None:
    # wasmtime's own path parks an exception in a global, and the next trap of any thread picks it up (RUNTIME §4.1).
    def exit_now(_function: object, _arguments: object) -> tuple[object, str | None]:
        raise SystemExit(3)

    kit.run("get_setting", answer=exit_now)

    assert _enter.LAST_EXCEPTION is None
    assert kit.run("unreachable").outcome.kind == "unreachable"


def test_memory__of_many_calls__is_given_back(kit: EngineKit) -> None:
    body = b"x" * 200_000
    for _ in range(5):
        kit.run("echo", post(body))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(40):
        kit.run("echo", post(body))
        kit.run("get_setting", answer=lambda _f, _a: ("y" * 200_000, None))

    # One leaked body of values would be 6.4 MB: 40 of them show.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_call_function__component_guest__returns_none_or_a_text(kit: EngineKit) -> None:
    assert kit.run("hello").outcome.status == 200
    assert guests.compiled("hello").memories == 1
