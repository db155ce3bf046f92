"""What an install measured about itself: for people, and for a Prometheus of the tenant's own. Never among the operator's metrics (T43)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from gateway.auth import MANAGE, READ
from gateway.problems import documented
from gateway.routes.admin.access import INSTALL_ROUTE, CallerOf, TenantParameter
from gateway.routes.admin.models import MeasurementModel, PageModel
from registry.domain.measurements import Measurement, MeasurementKind, cumulative
from registry.services.measurements import MeasurementQuery

PREFIX: Final = "ext_"
"""Of every name in the text format: whoever scrapes an extension can tell its names from everybody else's."""
TEXT_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"


def build_router(measurements: MeasurementQuery) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/installs/{install_id}/metrics", tags=["installs"])

    @router.get("", responses=documented(*INSTALL_ROUTE), response_model=PageModel[MeasurementModel])
    async def get_metrics(
        caller: CallerOf,
        install_id: str,
        tenant_id: TenantParameter = None,
        format: Annotated[Literal["json", "prometheus"], Query(description="prometheus: the text format.")] = "json",  # noqa: A002 - the wire's name
    ) -> PageModel[MeasurementModel] | Response:
        """Return what an install measured: at most 100 series, on one page. Role ext:read or ext:manage."""
        found = await measurements.list_measurements(caller.tenant(tenant_id, READ, MANAGE), install_id)
        if format == "prometheus":
            return Response(_page(found), media_type=TEXT_FORMAT)
        return PageModel(items=[_model(one) for one in found])

    @router.delete("", status_code=204, responses=documented(*INSTALL_ROUTE))
    async def forget_metrics(caller: CallerOf, install_id: str, tenant_id: TenantParameter = None) -> Response:
        """Delete what an install measured, so that its names, their kinds and the room are free again. Role ext:manage."""
        await measurements.forget(caller.tenant(tenant_id, MANAGE), install_id, actor=caller.actor)
        return Response(status_code=204)

    return router


def _model(one: Measurement) -> MeasurementModel:
    counted = None if one.buckets is None else cumulative(one.buckets)
    return MeasurementModel(
        name=one.series.name,
        kind=one.series.kind,
        labels=dict(one.series.labels),
        value=one.value,
        count=None if counted is None else counted[-1][1],
        buckets=None if counted is None else dict(counted),
        observed_at=one.observed_at,
    )


class _Families(Collector):
    """An install's series as families."""

    def __init__(self, found: Iterable[Measurement]) -> None:
        self._found = tuple(found)

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for one in self._found:
            name = PREFIX + one.series.name
            family = families.setdefault(name, Metric(name, "", one.series.kind))
            labels = dict(one.series.labels)
            match one.series.kind:
                case MeasurementKind.COUNTER:
                    family.add_sample(f"{name}_total", labels, one.value)
                case MeasurementKind.GAUGE:
                    family.add_sample(name, labels, one.value)
                case MeasurementKind.HISTOGRAM:
                    counted = cumulative(one.buckets or ())
                    for bound, count in counted:
                        family.add_sample(f"{name}_bucket", labels | {"le": bound}, count)
                    family.add_sample(f"{name}_count", labels, counted[-1][1])
                    family.add_sample(f"{name}_sum", labels, one.value)
        yield from families.values()


def _page(found: Iterable[Measurement]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Families(found))
    return generate_latest(registry)
