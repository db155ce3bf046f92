from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from registry.domain.measurements import MeasurementKind
from registry.services.measurements import MeasurementCase, MeasurementRefusalError
from runnerd.capabilities.catalog import BY_NAME
from runnerd.capabilities.metrics import metrics_handlers
from tests.fakes.capabilities import INSTALL, grant_of, make_broker

ADD, SET, RECORD = (BY_NAME["extrunner:host/metrics", name] for name in ("counter-add", "gauge-set", "histogram-record"))


class Recorded:
    """Remembers what was measured, or refuses it."""

    def __init__(self, refusal: MeasurementRefusalError | None = None) -> None:
        self.values: list[Any] = []
        self.refusal = refusal

    def record(self, tenant_id: str, install_id: str, **value: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.values.append((tenant_id, install_id, value))


async def test_each_function_measures_its_kind_for_the_install_of_the_call() -> None:
    recorded = Recorded()
    broker = make_broker(metrics_handlers(recorded))
    labels = [{"name": "install_id", "value": "another"}]
    for function in (ADD, SET, RECORD):
        result = await broker.call(grant_of("metrics.emit"), function, ("orders", 1.5, labels))
        assert (result.error, result.value, result.denial) == (None, None, None)
    wanted = {"name": "orders", "value": 1.5, "labels": (("install_id", "another"),)}
    assert recorded.values == [("tenant-a", INSTALL, {"kind": kind} | wanted) for kind in MeasurementKind]


@pytest.mark.parametrize("case", MeasurementCase)
async def test_a_refusal_is_the_guests_case_and_repeats_nothing_of_the_guests(
    case: MeasurementCase, caplog: pytest.LogCaptureFixture
) -> None:
    broker = make_broker(metrics_handlers(Recorded(MeasurementRefusalError(case, "a rule"))))
    with caplog.at_level(logging.DEBUG):
        result = await broker.call(grant_of("metrics.emit"), ADD, ("MARKER", math.nan, [{"name": "MARKER", "value": "MARKER"}]))
    assert (result.error, result.denial) == (case, None)
    assert "MARKER" not in caplog.text


async def test_without_the_capability_nothing_is_measured() -> None:
    recorded = Recorded()
    result = await make_broker(metrics_handlers(recorded)).call(grant_of(), ADD, ("orders", 1.0, []))
    assert result.error == "denied"
    assert result.denial is not None
    assert (result.denial["capability"], result.denial["why"]) == ("cap:metrics.emit", "not_declared")
    assert recorded.values == []
