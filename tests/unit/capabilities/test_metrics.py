from __future__ import annotations

import logging
import math
import time
from typing import Any, cast

import pytest

from registry.database import Database
from registry.domain.limits import OPERATOR_DEFAULTS
from registry.domain.measurements import MAX_SERIES, MeasurementKind
from registry.services.measurements import MeasurementCase, MeasurementRecorder, MeasurementRefusalError
from runnerd.capabilities.catalog import BY_NAME
from runnerd.capabilities.metrics import metrics_handlers
from runnerd.dispatch.calls import CallTable, HostCallRequested
from runnerd.dispatch.host_calls import HostCallDesk
from runnerd.telemetry.metrics import Metrics
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


async def test_ten_thousand_names_labels_and_values_make_no_series_of_the_operators() -> None:
    """T43: from the desk that counts host calls down to the recorder, none of whose values are ever written here."""
    metrics, recorder = Metrics(), MeasurementRecorder(cast("Database", None))
    desk = HostCallDesk(make_broker(metrics_handlers(recorder)), metrics)
    call = CallTable().open(grant=grant_of("metrics.emit"), limits=OPERATOR_DEFAULTS, deadline=time.monotonic() + 600)

    def series() -> set[str]:
        return {line.rpartition(" ")[0] for line in metrics.render().decode().splitlines() if not line.startswith("#")}

    before = series()
    for number in range(3_400):
        for function, name in ((ADD, f"name_{number}"), (SET, "extrunner_executions_total"), (RECORD, "name")):
            labels = [{"name": "user", "value": str(number)}, {"name": "capability", "value": f"v{number}"}]
            arguments = (name, float(number), labels)
            await desk.answer(HostCallRequested(call=call, function=function, arguments=arguments))
    assert series() == before
    assert recorder.gathered == MAX_SERIES
    counted = [
        metrics.registry.get_sample_value("extrunner_host_calls_total", {"capability": "metrics.emit", "result": result})
        for result in ("ok", "error")
    ]
    assert sum(count or 0 for count in counted) == 10_200


async def test_without_the_capability_nothing_is_measured() -> None:
    recorded = Recorded()
    result = await make_broker(metrics_handlers(recorded)).call(grant_of(), ADD, ("orders", 1.0, []))
    assert result.error == "denied"
    assert result.denial is not None
    assert (result.denial["capability"], result.denial["why"]) == ("cap:metrics.emit", "not_declared")
    assert recorded.values == []
