from __future__ import annotations

import struct
from typing import Any

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmtime import component

from runnerd.capabilities.catalog import EXECUTE_REQUEST, EXECUTE_RESPONSE, FUNCTIONS, STORAGE_ENTRY, HostFunction
from runnerd.capabilities.shapes import TEXT, U64, Data, Enum, ListOf, Option, Shape, Text, TupleOf, record
from runnerd.engine import bindings as b
from runnerd.engine import bridge, calls, compose
from runnerd.engine.component_values import GuestSizeError, GuestTypeError, lift, lower
from runnerd.engine.memory_images import (
    GuestImage,
    HostImage,
    alignment_of,
    flat_of,
    layout_of,
    lift_flat,
    load,
    result_image,
    size_of,
    store,
)
from tests.fakes.engine_kit import EngineKit
from tests.fakes.shape_values import values_of

BASE = 1024
CARRIED = [function for function in FUNCTIONS if function.carries_bytes]


def test_layout__of_the_worlds_records__is_the_canonical_abis() -> None:
    assert (size_of(EXECUTE_REQUEST), alignment_of(EXECUTE_REQUEST)) == (88, 4)
    assert (size_of(EXECUTE_RESPONSE), alignment_of(EXECUTE_RESPONSE)) == (24, 4)
    # namespace, key, value: three pairs; an option of u64 begins at the next eight.
    assert layout_of(tuple(field for _, field in STORAGE_ENTRY.fields)) == ((0, 8, 16, 24), 40)
    assert flat_of(STORAGE_ENTRY) == ("i32",) * 7 + ("i64",)
    assert len(flat_of(EXECUTE_REQUEST)) == 22


@pytest.mark.parametrize("function", CARRIED, ids=lambda function: function.qualified_name)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_values__stored_and_loaded__are_the_same(function: HostFunction, data: st.DataObject) -> None:
    for shape in [shape for _, shape in function.params] + ([function.result] if function.result is not None else []):
        value = data.draw(values_of(shape))
        image = HostImage(BASE)
        memory, address = image.reserve(size_of(shape), 8)
        store(shape, value, image, memory, 0)

        assert load(shape, GuestImage(image.to_bytes(), BASE), address) == value


@pytest.fixture(scope="module")
def own_kit() -> EngineKit:
    return EngineKit()


@pytest.mark.parametrize("function", CARRIED, ids=lambda function: function.qualified_name)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_host_call__through_the_bridge__carries_what_the_engine_itself_lowers_and_lifts(
    own_kit: EngineKit, function: HostFunction, data: st.DataObject
) -> None:
    """The engine lowers parameters and lifts results of $calls value by value; between the two lies only the bridge."""
    arguments = [data.draw(values_of(shape)) for _, shape in function.params]
    assert function.error is not None
    case = data.draw(st.none() | st.sampled_from(function.error.cases))
    value = None if case is not None or function.result is None else data.draw(values_of(function.result))

    asked, answered = ask(own_kit, function, arguments, (value, case))

    assert asked == [(function.qualified_name, arguments)]
    assert answered == (value, case)


def ask(
    kit: EngineKit, function: HostFunction, arguments: list[Any], answer: tuple[Any, str | None]
) -> tuple[list[Any], tuple[Any, str | None]]:
    """Call $calls' function from the host, as a guest would; return what reached the host, and what came back."""
    compiled = component.Component(kit.engine, compose.calls_component((function,)))
    linker = component.Linker(kit.engine)
    with linker.root() as root, root.add_instance("host") as instance:
        for name, callback in bridge.FUNCTIONS.items():
            b.add_function(instance, name, callback)
    call, _ = kit.call(answer=lambda _f, _a: answer, grants=frozenset({function.capability}))
    fresh = wasmtime.Store(kit.engine)
    fresh.set_fuel(10_000_000)
    fresh.set_epoch_deadline(10_000)
    calls.set_current(call)
    values, result = b.new_values(len(arguments)), b.Value()
    try:
        made = linker.instantiate(fresh, compiled)
        entry = made.get_func(fresh, f"f{function.number}")
        assert entry is not None
        for shape, argument, target in zip([shape for _, shape in function.params], arguments, values, strict=True):
            lower(shape, argument, target)
        trap = b.call_function(fresh, entry, values, result)
        assert trap is None, (trap, call.stop)
        return call.port.calls, _lifted(function, result)  # type: ignore[attr-defined]
    finally:
        b.delete_values(values)
        b.delete_value(result)
        fresh.close()
        calls.set_current(None)


def _lifted(function: HostFunction, result: Any) -> tuple[Any, str | None]:
    assert result.kind == b.KIND_RESULT
    if not result.of.result.is_ok:
        assert function.error is not None
        return None, str(lift(function.error, result.of.result.val[0]))
    return (lift(function.result, result.of.result.val[0]) if function.result is not None else None), None


# --- hostile images --------------------------------------------------------------------------------------------------------------------

SHAPES: list[Shape] = [EXECUTE_RESPONSE, STORAGE_ENTRY, ListOf(STORAGE_ENTRY), TupleOf((TEXT, U64, Option(TEXT))), Enum("e", ("a", "b"))]


@given(st.sampled_from(SHAPES), st.binary(max_size=200), st.integers(0, 2**32 - 1))
def test_image__of_any_bytes__is_a_value_or_an_error(shape: Shape, data: bytes, address: int) -> None:
    for where in (address, BASE):
        try:
            load(shape, GuestImage(data, BASE), where)
        except (GuestTypeError, GuestSizeError):
            continue


@given(st.sampled_from(SHAPES), st.binary(max_size=64), st.lists(st.integers(0, 2**64 - 1), min_size=22, max_size=22))
def test_slots__of_any_numbers__are_a_value_or_an_error(shape: Shape, data: bytes, slots: list[int]) -> None:
    try:
        lift_flat(shape, GuestImage(data, BASE), iter(slots))
    except (GuestTypeError, GuestSizeError):
        return


@pytest.mark.parametrize(("address", "size"), [(BASE - 1, 1), (BASE + 8, 1), (BASE, 9), (0, 1), (2**32 - 1, 2)])
def test_address__outside_the_image__is_refused(address: int, size: int) -> None:
    with pytest.raises(GuestTypeError):
        GuestImage(bytes(8), BASE).take(address, size)


def test_values__that_lie_over_each_other__are_not_copied_many_times() -> None:
    pairs = struct.pack("<II", BASE + 8 + 800, 1_000) * 100
    image = struct.pack("<II", BASE + 8, 100) + pairs + b"x" * 1_000

    with pytest.raises(GuestTypeError, match="more bytes than the image has"):
        load(ListOf(Text(), 200), GuestImage(image, BASE), BASE)


def test_length__above_its_shape__is_a_size_error_whatever_the_image_holds() -> None:
    image = GuestImage(struct.pack("<II", BASE, 11), BASE)

    with pytest.raises(GuestSizeError):
        load(Data(10), image, BASE)
    with pytest.raises(GuestSizeError):
        load(ListOf(TEXT, 10), image, BASE)


def test_case__beyond_the_enum__is_refused() -> None:
    with pytest.raises(GuestTypeError, match="has no case 2"):
        load(Enum("e", ("a", "b")), GuestImage(b"\2", BASE), BASE)


def test_result__error__stands_where_the_value_would() -> None:
    error = Enum("e", ("a", "b"))

    assert result_image(BASE, record("r", n=U64), error, None, "b") == bytes([1, *bytes(7), 1, *bytes(7)])
    assert result_image(BASE, None, error, None, None) == bytes(2)
