"""extrunner:host/metrics: what an extension measures about itself (cap:metrics.emit).

Attack it stops (T43): a guest that makes series without end, or spoofs the operator's. Nothing here reaches the daemon's own metrics:
values go to rows of the install, whose names, labels and number are bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from registry.domain.ids import InstallId, TenantId
from registry.domain.measurements import MeasurementKind
from registry.services.measurements import MeasurementRefusalError
from runnerd.capabilities.arguments import list_of
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named
from runnerd.capabilities.results import HostResult, failed, succeeded

_LOG = logging.getLogger(__name__)
_INTERFACE = "extrunner:host/metrics"
_KINDS = {
    "counter-add": MeasurementKind.COUNTER,
    "gauge-set": MeasurementKind.GAUGE,
    "histogram-record": MeasurementKind.HISTOGRAM,
}


class Measurements(Protocol):
    """What is asked of `registry.services.measurements.MeasurementRecorder`; it raises MeasurementRefusalError."""

    def record(  # noqa: PLR0913 - the recorder's own
        self,
        tenant_id: TenantId,
        install_id: InstallId,
        *,
        kind: MeasurementKind,
        name: str,
        value: float,
        labels: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Take a value without waiting."""
        ...


def metrics_handlers(measurements: Measurements) -> Mapping[int, Handler]:
    """Return the handlers, by number of the function."""
    return {function_named(_INTERFACE, name).number: _handler(measurements, kind) for name, kind in _KINDS.items()}


def _handler(measurements: Measurements, kind: MeasurementKind) -> Handler:
    async def record(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        name, value, labels = arguments
        try:
            measurements.record(grant.tenant_id, grant.install_id, kind=kind, name=str(name), value=_number(value), labels=_pairs(labels))
        except MeasurementRefusalError as refusal:
            # SECURITY: the rule, never the name or the label: they are the guest's, and may be anything.
            _LOG.debug("measurement refused: %s", refusal.detail, extra=grant.log_fields)
            return failed(refusal.case)
        return succeeded()

    return record


def _number(value: object) -> float:
    if not isinstance(value, float):
        message = "a value is a number"
        raise TypeError(message)
    return value


def _pairs(labels: object) -> tuple[tuple[str, str], ...]:
    return tuple((str(label["name"]), str(label["value"])) for label in list_of(labels))
