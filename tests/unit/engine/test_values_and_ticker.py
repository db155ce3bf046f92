from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerd.capabilities.catalog import EXECUTE_REQUEST, FUNCTIONS
from runnerd.capabilities.shapes import U16, Data, Enum, ListOf, Option, Record, Text, TupleOf
from runnerd.engine import bindings
from runnerd.engine.component_values import GuestSizeError, GuestTypeError, is_large, lift, lower
from runnerd.engine.engine import Ticker
from runnerd.engine.profile import MAX_TICKS_AHEAD, TICK_SECONDS, EngineProfile, engine_fingerprint
from tests.fakes.shape_values import values_of

SHAPES = [shape for function in FUNCTIONS for shape in [*(shape for _, shape in function.params), function.result] if shape is not None]


def through(shape: Any, python: object, read_as: Any = None) -> object:
    value = bindings.Value()
    try:
        lower(shape, python, value)
        return lift(read_as or shape, value)
    finally:
        bindings.delete_value(value)


@given(st.data())
def test_every_shape_of_the_catalog__lowered_and_lifted__is_the_same(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([*SHAPES, EXECUTE_REQUEST]))
    python = data.draw(values_of(shape))

    assert through(shape, python) == python


@pytest.mark.parametrize(
    ("shape", "python", "read_as"),
    [
        (Text(), "x", U16),
        (Text(), "x", Data()),
        (Text(), "x", Enum("e", ("x",))),
        (U16, 1, Text()),
        (Data(), b"x", ListOf(Text())),
        (ListOf(Text()), ["x"], Data()),
        (TupleOf((U16, U16)), (1, 2), TupleOf((U16,))),
        (Enum("e", ("a", "b")), "b", Enum("e", ("a", "c"))),
        (Record("r", (("a", U16),)), {"a": 1}, Record("r", (("b", U16),))),
        (Record("r", (("a", U16),)), {"a": 1}, Record("r", (("a", U16), ("b", U16)))),
        (Option(U16), 1, U16),
        (U16, 1, Option(U16)),
    ],
)
def test_lift__value_of_another_shape__is_refused(shape: Any, python: object, read_as: Any) -> None:
    with pytest.raises(GuestTypeError):
        through(shape, python, read_as)


@pytest.mark.parametrize(
    ("shape", "python", "read_as"),
    [(Text(), "xxx", Text(2)), (Data(), b"xxx", Data(2)), (ListOf(U16), [1, 2, 3], ListOf(U16, 2)), (Text(), "é", Text(1))],
)
def test_lift__longer_than_the_shape_allows__is_refused(shape: Any, python: object, read_as: Any) -> None:
    with pytest.raises(GuestSizeError):
        through(shape, python, read_as)


def test_lower__failing_in_the_middle__frees_what_it_made() -> None:
    shape = ListOf(Record("r", (("a", Text()), ("b", U16))))
    value = bindings.Value()
    with pytest.raises(KeyError):
        lower(shape, [{"a": "x" * 1000, "b": 1}, {"a": "y"}], value)
    bindings.delete_value(value)

    assert value.kind == bindings.KIND_LIST


@pytest.mark.parametrize(
    ("value", "large"), [(b"x" * 65_536, False), (b"x" * 65_537, True), ({"a": [(b"x" * 65_537,)]}, True), ("x" * 10**6, False)]
)
def test_is_large(value: object, large: bool) -> None:
    assert is_large(value) is large


# --- ticker ----------------------------------------------------------------------------------------------------------------------------


class CountingEngine:
    def __init__(self) -> None:
        self.epoch = 0

    def increment_epoch(self) -> None:
        self.epoch += 1


def ticker_with(moments: list[float]) -> tuple[Ticker, CountingEngine]:
    engine = CountingEngine()
    remaining = list(moments)

    def monotonic() -> float:
        if len(remaining) == 1:
            ticker.call_ended()
        return remaining.pop(0)

    ticker = Ticker(engine, monotonic=monotonic)  # type: ignore[arg-type]
    ticker.call_started()
    return ticker, engine


@pytest.mark.parametrize(
    ("moments", "ticks"),
    [([0.0, 0.0101], 1), ([0.0, 0.005], 0), ([0.0, 0.005, 0.0101], 1), ([0.0, 0.101], 10), ([0.0, 0.0355, 0.0401], 4)],
)
def test_ticker__whatever_the_wake_ups__advances_with_the_clock(moments: list[float], ticks: int) -> None:
    ticker, engine = ticker_with(moments)
    ticker._tick_while_running()

    assert engine.epoch == ticks


def test_ticker__after_a_long_stop__does_not_count_it_out() -> None:
    ticker, engine = ticker_with([0.0, 3600.0])
    ticker._tick_while_running()

    assert engine.epoch == MAX_TICKS_AHEAD + 1
    assert ticker.late_seconds >= 3600.0 - 2 * TICK_SECONDS


def test_ticker__hurried__passes_every_deadline() -> None:
    engine = CountingEngine()
    Ticker(engine).hurry()  # type: ignore[arg-type]

    assert engine.epoch > MAX_TICKS_AHEAD


def test_fingerprint__profile_and_process__decide_it() -> None:
    assert engine_fingerprint(EngineProfile(fuel=True)) == engine_fingerprint()
    assert engine_fingerprint(EngineProfile(fuel=False)) != engine_fingerprint()
    assert len(engine_fingerprint()) == 64
