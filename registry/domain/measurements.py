"""What extensions measure: names, labels, values, and how many series an install may have (T43).

Attack it stops: a guest that makes a new series with each call fills the store of whoever keeps them, and puts addresses of people into
labels, where nobody looks for personal data. So everything has a grammar and a bound: a series is one of at most 100 of its install, of at
most 20 names, each of which keeps the kind of its first use; label values are tokens, not sentences.

A counter's name is kept without its "_total", and the endings that the text format of Prometheus gives to the parts of a counter or
histogram belong to no other name: two series of an install never look alike to whoever reads them.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

MAX_NAMES: Final = 20
"""Of one install."""
MAX_SERIES: Final = 100
"""Of one install, all names together."""
MAX_LABELS: Final = 8
MAX_VALUE: Final = 1e15
"""Whole numbers up to here are exact, and no sum of them can reach infinity."""
BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0),
    *(1_000.0, 5_000.0, 10_000.0, 100_000.0, 1_000_000.0, 10_000_000.0, 100_000_000.0),
)
"""Upper bounds of every histogram, the same for all, so that daemons of any release add up; the last bucket has none."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9._:/-]{1,64}\Z")
_COUNTER_ENDING: Final = "_total"
_RESERVED_ENDINGS: Final = ("_bucket", "_count", "_sum", "_created", "_info")
_RESERVED_LABELS: Final = frozenset({"le", "quantile"})

Labels = tuple[tuple[str, str], ...]


class MeasurementKind(StrEnum):
    """What a series is; fixed by the first use of its name."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class MeasurementError(ValueError):
    """A name, label or value that is not accepted; the text says which rule."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an install. Made by `series_of`."""

    name: str
    kind: MeasurementKind
    labels: Labels
    """Sorted by name."""

    @property
    def labels_text(self) -> str:
        """The labels in the one form that they are stored and compared in."""
        return json.dumps(dict(self.labels), separators=(",", ":"))


@dataclass(slots=True)
class Change:
    """What is to be added to a series: for a gauge what it is, for the others how much came.

    The first is a gauge's value, a counter's or histogram's sum.
    """

    value: float
    observed_at: datetime
    buckets: list[int] | None = None
    """Of a histogram: how many values fell into each bucket, those above the last bound at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One series as it is stored."""

    series: Series
    value: float
    """A gauge's value; the sum of a counter or histogram."""
    buckets: tuple[int, ...] | None
    observed_at: datetime


def series_of(kind: MeasurementKind, name: str, labels: Iterable[tuple[str, str]]) -> Series:
    """Return the series that a guest names.

    Raises:
        MeasurementError: the name or a label breaks a rule.
    """
    if not _NAME.match(name):
        message = "a name is 1 to 64 characters of a-z, 0-9 and _, and begins with a letter"
        raise MeasurementError(message)
    if kind is MeasurementKind.COUNTER:
        name = name.removesuffix(_COUNTER_ENDING)
    if not name or name.endswith((_COUNTER_ENDING, *_RESERVED_ENDINGS)):
        message = f"no name ends with {', '.join(_RESERVED_ENDINGS)}, and only a counter's with {_COUNTER_ENDING}"
        raise MeasurementError(message)
    return Series(name, kind, _checked_labels(labels))


def _checked_labels(labels: Iterable[tuple[str, str]]) -> Labels:
    ordered = tuple(sorted(labels))
    if len(ordered) > MAX_LABELS:
        message = f"{len(ordered)} labels where {MAX_LABELS} are allowed"
        raise MeasurementError(message)
    if len({name for name, _ in ordered}) != len(ordered):
        message = "a label is there twice"
        raise MeasurementError(message)
    for name, value in ordered:
        if not _NAME.match(name) or name in _RESERVED_LABELS:
            message = "a label's name is 1 to 64 characters of a-z, 0-9 and _, begins with a letter, and is not le or quantile"
            raise MeasurementError(message)
        if not _LABEL_VALUE.match(value):
            message = "a label's value is 1 to 64 characters of A-Z, a-z, 0-9 and ._:/-"
            raise MeasurementError(message)
    return ordered


def checked_value(kind: MeasurementKind, value: float) -> float:
    """Return `value`, if a series of this kind can take it.

    Raises:
        MeasurementError: not a number, too large, or negative where the sum may only grow.
    """
    if not math.isfinite(value) or abs(value) > MAX_VALUE:
        message = f"a value is a number of at most {MAX_VALUE:g}"
        raise MeasurementError(message)
    if value < 0 and kind is not MeasurementKind.GAUGE:
        message = f"a {kind} takes no negative value"
        raise MeasurementError(message)
    return value


def first_change(kind: MeasurementKind, value: float, observed_at: datetime) -> Change:
    """Return the change that one value makes."""
    change = Change(value, observed_at, [0] * (len(BUCKETS) + 1) if kind is MeasurementKind.HISTOGRAM else None)
    if change.buckets is not None:
        change.buckets[bisect_left(BUCKETS, value)] += 1
    return change


def merged(kind: MeasurementKind, earlier: Change, later: Change) -> Change:
    """Return what two changes make together."""
    if kind is MeasurementKind.GAUGE:
        return later if later.observed_at >= earlier.observed_at else earlier
    buckets = None
    if earlier.buckets is not None and later.buckets is not None:
        buckets = [left + right for left, right in zip(earlier.buckets, later.buckets, strict=True)]
    return Change(earlier.value + later.value, max(earlier.observed_at, later.observed_at), buckets)


class Admission(StrEnum):
    """Whether an install may have a series."""

    ADMITTED = "admitted"
    OTHER_KIND = "other_kind"
    """The name belongs to a series of another kind."""
    FULL = "full"
    """The install has as many names or series as it may."""


class SeriesBook:
    """The series that an install has, and whether it may have one more."""

    def __init__(self, series: Iterable[Series] = ()) -> None:
        self._kinds: dict[str, MeasurementKind] = {}
        self._series: set[Series] = set()
        for one in series:
            self._kinds[one.name] = one.kind
            self._series.add(one)

    def admit(self, series: Series) -> Admission:
        """Enter a series, unless it may not be."""
        if series in self._series:
            return Admission.ADMITTED
        kind = self._kinds.get(series.name)
        if kind is not None and kind is not series.kind:
            return Admission.OTHER_KIND
        if len(self._series) >= MAX_SERIES or (kind is None and len(self._kinds) >= MAX_NAMES):
            return Admission.FULL
        self._kinds[series.name] = series.kind
        self._series.add(series)
        return Admission.ADMITTED


def cumulative(buckets: Iterable[int]) -> list[tuple[str, int]]:
    """Return the buckets as the text format of Prometheus wants them: upper bound, and how many values are at most that."""
    bounds = [*(f"{bound:g}" if bound < 1e6 else str(int(bound)) for bound in BUCKETS), "+Inf"]  # noqa: PLR2004 - below it, %g is exact
    counted, total = [], 0
    for bound, count in zip(bounds, buckets, strict=True):
        total += count
        counted.append((bound, total))
    return counted


Changes = Mapping[Series, Change]
