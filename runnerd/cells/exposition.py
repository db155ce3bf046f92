"""The metrics of all cells as one page: every series of a cell gets the label `cell`, so that whoever reads it may add them up.

Each cell counts in its own process; adding up here would make a counter fall whenever a cell is replaced, which Prometheus takes for a
reset of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

LABEL = "cell"


def families(registry: CollectorRegistry) -> list[Any]:
    """Return what a registry holds, as JSON takes it."""
    return [
        [family.name, family.documentation, family.type, [[sample.name, sample.labels, sample.value] for sample in family.samples]]
        for family in registry.collect()
    ]


class Merged(Collector):
    """The families of several cells, as of one moment."""

    def __init__(self, cells: Mapping[int, Iterable[Any]]) -> None:
        self._cells = cells

    def collect(self) -> Iterator[Metric]:
        """Yield each family once, with the series of all cells."""
        merged: dict[str, Metric] = {}
        for index, page in self._cells.items():
            for name, text, kind, samples in page:
                family = merged.setdefault(name, Metric(name, text, kind))
                for sample, labels, value in samples:
                    family.add_sample(sample, {**labels, LABEL: str(index)}, value)
        yield from merged.values()
