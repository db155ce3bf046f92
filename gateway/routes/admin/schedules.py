"""Schedules of an install: what its extension wants to be called at, and an administrator's way to stop it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gateway.auth import MANAGE
from gateway.problems import documented
from gateway.routes.admin.access import INSTALL_ROUTE, CallerOf, TenantParameter
from gateway.routes.admin.models import PageModel, ScheduleEnabling, ScheduleModel
from registry.domain.errors import Reason
from registry.services.schedule_administration import ScheduleAdministration, ScheduleView


def build_router(schedules: ScheduleAdministration) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/installs/{install_id}/schedules", tags=["installs"])

    @router.get("", responses=documented(*INSTALL_ROUTE))
    async def list_schedules(caller: CallerOf, install_id: str, tenant_id: TenantParameter = None) -> PageModel[ScheduleModel]:
        """List an install's schedules with their payloads: at most 50, on one page. Role ext:manage."""
        found = await schedules.list_schedules(caller.tenant(tenant_id, MANAGE), install_id)
        return PageModel(items=[_model(view) for view in found])

    @router.patch("/{schedule_id}", responses=documented(*INSTALL_ROUTE, Reason.NOT_FOUND))
    async def change_schedule(
        caller: CallerOf, install_id: str, schedule_id: str, change: ScheduleEnabling, tenant_id: TenantParameter = None
    ) -> ScheduleModel:
        """Stop a schedule, so that its extension cannot enable it any more, or let it run. Role ext:manage."""
        tenant = caller.tenant(tenant_id, MANAGE)
        return _model(await schedules.set_enabled(tenant, install_id, schedule_id, enabled=change.enabled, actor=caller.actor))

    @router.delete("/{schedule_id}", status_code=204, responses=documented(*INSTALL_ROUTE, Reason.NOT_FOUND))
    async def delete_schedule(caller: CallerOf, install_id: str, schedule_id: str, tenant_id: TenantParameter = None) -> Response:
        """Delete a schedule. Role ext:manage."""
        await schedules.delete(caller.tenant(tenant_id, MANAGE), install_id, schedule_id, actor=caller.actor)
        return Response(status_code=204)

    return router


def _model(view: ScheduleView) -> ScheduleModel:
    schedule = view.schedule
    return ScheduleModel(
        schedule_id=schedule.schedule_id,
        name=schedule.name,
        endpoint=f"{schedule.endpoint_method} {schedule.endpoint_path}",
        has_endpoint=view.has_endpoint,
        cron=schedule.cron,
        timezone=schedule.timezone,
        is_active=schedule.is_active,
        enabled=schedule.enabled,
        stopped_by=schedule.stopped_by,
        payload=schedule.payload,
        last_run_at=schedule.last_run_at,
        last_run_status=schedule.last_run_status,
        last_error=schedule.last_error,
        created_at=schedule.created_at,
        updated_at=schedule.updated_at,
    )
