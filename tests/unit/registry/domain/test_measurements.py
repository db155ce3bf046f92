from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.measurements import (
    BUCKETS,
    MAX_LABELS,
    MAX_NAMES,
    MAX_SERIES,
    MAX_VALUE,
    Admission,
    MeasurementError,
    MeasurementKind,
    Series,
    SeriesBook,
    checked_value,
    cumulative,
    first_change,
    merged,
    series_of,
)

COUNTER, GAUGE, HISTOGRAM = MeasurementKind
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("name", ["a", "orders", "a1_b", "a" * 64, "total", "sum", "info_x"])
@pytest.mark.parametrize("kind", MeasurementKind)
def test_name__of_the_grammar__is_kept(kind: MeasurementKind, name: str) -> None:
    assert series_of(kind, name, ()).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "1a",
        "_a",
        "a-b",
        "a.b",
        "ä",
        "a\n",
        "a" * 65,
        "extrunner_executions\n",
        "a b",
        "a\x00",
        'a{b="c"}',
        "x_bucket",
        "x_sum",
        "x_count",
        "x_created",
        "x_info",
        "x_total_total",
    ],
)
@pytest.mark.parametrize("kind", MeasurementKind)
def test_name__anything_else__is_refused(kind: MeasurementKind, name: str) -> None:
    with pytest.raises(MeasurementError):
        series_of(kind, name, ())


def test_name__of_a_counter__is_the_same_with_and_without_total() -> None:
    assert series_of(COUNTER, "orders_total", ()) == series_of(COUNTER, "orders", ())
    for kind in (GAUGE, HISTOGRAM):
        with pytest.raises(MeasurementError):
            series_of(kind, "orders_total", ())


@given(st.sampled_from(MeasurementKind), st.text(max_size=70))
def test_name__no_text__becomes_anything_but_the_grammar(kind: MeasurementKind, name: str) -> None:
    try:
        series = series_of(kind, name, ())
    except MeasurementError:
        return
    assert series.name.isascii()
    assert series.name.replace("_", "a").isalnum()
    assert series.name == series.name.lower()


def test_labels__in_any_order__are_one_series() -> None:
    one, other = series_of(GAUGE, "g", [("b", "2"), ("a", "1")]), series_of(GAUGE, "g", [("a", "1"), ("b", "2")])
    assert one == other
    assert one.labels_text == other.labels_text == '{"a":"1","b":"2"}'


@pytest.mark.parametrize(
    "labels",
    [
        [("a", "1"), ("a", "2")],
        [("", "1")],
        [("le", "1")],
        [("quantile", "1")],
        [("__name__", "extrunner_executions_total")],
        [("A", "1")],
        [("a", "")],
        [("a", "x" * 65)],
        [("a", "ada@example.com")],
        [("a", "Ada Lovelace")],
        [("a", 'x"} 1\nextrunner_x 1')],
        [("a", "\u202e")],
        [(f"l{number}", "x") for number in range(MAX_LABELS + 1)],
    ],
)
def test_labels__anything_but_few_tokens__are_refused(labels: list[tuple[str, str]]) -> None:
    with pytest.raises(MeasurementError):
        series_of(COUNTER, "c", labels)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, MAX_VALUE * 1.01, -MAX_VALUE * 1.01])
@pytest.mark.parametrize("kind", MeasurementKind)
def test_value__that_no_sum_survives__is_refused(kind: MeasurementKind, value: float) -> None:
    with pytest.raises(MeasurementError):
        checked_value(kind, value)


def test_value__negative__only_for_a_gauge() -> None:
    assert checked_value(GAUGE, -1.0) == -1.0
    for kind in (COUNTER, HISTOGRAM):
        assert checked_value(kind, 0.0) == 0.0
        with pytest.raises(MeasurementError):
            checked_value(kind, -0.001)


def test_book__is_full_at_names_and_at_series() -> None:
    book = SeriesBook()
    for number in range(MAX_NAMES):
        assert book.admit(series_of(COUNTER, f"n{number}", ())) is Admission.ADMITTED
    assert book.admit(series_of(COUNTER, "one_more", ())) is Admission.FULL
    for number in range(MAX_SERIES - MAX_NAMES):
        assert book.admit(series_of(COUNTER, "n0", [("a", str(number))])) is Admission.ADMITTED
    assert book.admit(series_of(COUNTER, "n0", [("a", "more")])) is Admission.FULL
    # What is in it stays in it.
    assert book.admit(series_of(COUNTER, "n19", ())) is Admission.ADMITTED


def test_book__keeps_the_kind_of_the_first_use() -> None:
    book = SeriesBook([series_of(COUNTER, "c", ())])
    assert book.admit(series_of(GAUGE, "c", ())) is Admission.OTHER_KIND
    assert book.admit(series_of(GAUGE, "c", [("a", "1")])) is Admission.OTHER_KIND
    assert book.admit(series_of(COUNTER, "c_total", [("a", "1")])) is Admission.ADMITTED


@given(st.lists(st.tuples(st.sampled_from(MeasurementKind), st.integers(0, 40), st.integers(0, 20)), max_size=400))
def test_book__whatever_is_tried__keeps_its_bounds(tried: list[tuple[MeasurementKind, int, int]]) -> None:
    book, inside = SeriesBook(), set[Series]()
    for kind, name, label in tried:
        series = series_of(kind, f"n{name}", [("a", str(label))])
        if book.admit(series) is Admission.ADMITTED:
            inside.add(series)
    assert len(inside) <= MAX_SERIES
    assert len({series.name for series in inside}) == len({(series.name, series.kind) for series in inside}) <= MAX_NAMES


@given(st.lists(st.floats(0, MAX_VALUE), min_size=1, max_size=50))
def test_histogram__holds_each_value_once_in_the_bucket_it_belongs_to(values: list[float]) -> None:
    changes = [first_change(HISTOGRAM, value, NOW) for value in values]
    total = reduce(lambda left, right: merged(HISTOGRAM, left, right), changes)
    assert total.buckets is not None
    counted = cumulative(total.buckets)
    assert [bound for bound, _ in counted[:-1]] == [bound for bound, _ in counted[:-1] if float(bound) in BUCKETS]
    for bound, count in counted:
        assert count == sum(value <= float(bound) for value in values)
    assert total.value == pytest.approx(sum(values))


def test_gauge__the_later_value_wins_whichever_came_first() -> None:
    early, late = first_change(GAUGE, 1.0, NOW), first_change(GAUGE, 2.0, NOW + timedelta(seconds=1))
    assert merged(GAUGE, early, late).value == merged(GAUGE, late, early).value == 2.0
