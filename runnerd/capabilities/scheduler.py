"""alga:extension/scheduler: when the install's own endpoints are called by themselves (cap:scheduler.manage).

Tenant and install come from the grant, never from the guest. Reading answers the interface's typed error; writing answers a result record
that says in words what is wrong, field by field.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

from registry.domain.ids import InstallId, TenantId
from registry.repositories.schedules import Schedule
from registry.services.schedules import EndpointView, ScheduleCase, ScheduleRefusalError, ScheduleWish
from runnerd.capabilities.answers import broken
from runnerd.capabilities.arguments import record_of
from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named, log_refusal
from runnerd.capabilities.results import HostResult, failed, succeeded
from runnerd.capabilities.shapes import Record

_LOG = logging.getLogger(__name__)
_INTERFACE = "alga:extension/scheduler"


class Schedules(Protocol):
    """What is asked of `registry.services.schedules.ScheduleService`; it raises ScheduleRefusalError."""

    async def list_schedules(self, tenant_id: TenantId, install_id: InstallId) -> tuple[Schedule, ...]:
        """Return the install's schedules."""
        ...

    async def get(self, tenant_id: TenantId, install_id: InstallId, schedule_id: str) -> Schedule:
        """Return one schedule."""
        ...

    async def list_endpoints(self, tenant_id: TenantId, install_id: InstallId) -> tuple[EndpointView, ...]:
        """Return the endpoints of the installed version."""
        ...

    async def create(self, tenant_id: TenantId, install_id: InstallId, wish: ScheduleWish) -> Schedule:
        """Write a new schedule."""
        ...

    async def update(self, tenant_id: TenantId, install_id: InstallId, schedule_id: str, wish: ScheduleWish) -> Schedule:
        """Write what the wish names."""
        ...

    async def delete(self, tenant_id: TenantId, install_id: InstallId, schedule_id: str) -> None:
        """Delete a schedule."""
        ...


def scheduler_handlers(schedules: Schedules) -> Mapping[int, Handler]:
    """Return the handlers, by number of the function."""

    async def list_schedules(grant: InvocationGrant, arguments: tuple[object, ...]) -> object:
        del arguments
        return [_info(one) for one in await schedules.list_schedules(grant.tenant_id, grant.install_id)]

    async def get_schedule(grant: InvocationGrant, arguments: tuple[object, ...]) -> object:
        return _info(await schedules.get(grant.tenant_id, grant.install_id, str(arguments[0])))

    async def get_endpoints(grant: InvocationGrant, arguments: tuple[object, ...]) -> object:
        del arguments
        return [_endpoint(one) for one in await schedules.list_endpoints(grant.tenant_id, grant.install_id)]

    async def create_schedule(grant: InvocationGrant, arguments: tuple[object, ...]) -> object:
        created = await schedules.create(grant.tenant_id, grant.install_id, _wish(arguments[0]))
        return {"success": True, "schedule_id": created.schedule_id, "error": None, "field_errors": None}

    async def update_schedule(grant: InvocationGrant, arguments: tuple[object, ...]) -> object:
        await schedules.update(grant.tenant_id, grant.install_id, str(arguments[0]), _wish(arguments[1]))
        return {"success": True, "error": None, "field_errors": None}

    async def delete_schedule(grant: InvocationGrant, arguments: tuple[object, ...]) -> object:
        await schedules.delete(grant.tenant_id, grant.install_id, str(arguments[0]))
        return {"success": True, "error": None}

    answers = {
        "list-schedules": list_schedules,
        "get-schedule": get_schedule,
        "get-endpoints": get_endpoints,
        "create-schedule": create_schedule,
        "update-schedule": update_schedule,
        "delete-schedule": delete_schedule,
    }
    functions = {name: function_named(_INTERFACE, name) for name in answers}
    return {functions[name].number: _typed(functions[name], answer) for name, answer in answers.items()}


def _typed(function: HostFunction, answer: Callable[[InvocationGrant, tuple[object, ...]], Awaitable[object]]) -> Handler:
    """Turn the service's refusals into what the function has for them."""

    async def handler(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        try:
            return succeeded(await answer(grant, arguments))
        except ScheduleRefusalError as refusal:
            log_refusal(_LOG, "schedule refused: %s", refusal, grant)
            return _refused(function, refusal)

    return handler


def _refused(function: HostFunction, refusal: ScheduleRefusalError) -> HostResult:
    if refusal.case is ScheduleCase.INTERNAL:
        return broken(function)
    if function.error is not None or not isinstance(function.result, Record):
        return failed(refusal.case)
    says = {"success": False, "error": refusal.detail, "field_errors": json.dumps(dict(refusal.fields)) if refusal.fields else None}
    return succeeded({key: says.get(key) for key in function.result.keys})


def _info(schedule: Schedule) -> dict[str, object]:
    return {
        "id": schedule.schedule_id,
        "endpoint_path": schedule.endpoint_path,
        "endpoint_method": schedule.endpoint_method,
        "name": schedule.name,
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "enabled": schedule.is_active,
        "payload": schedule.payload,
        "last_run_at": _time(schedule.last_run_at),
        "last_run_status": schedule.last_run_status,
        "last_error": schedule.last_error,
        "created_at": _time(schedule.created_at),
    }


def _endpoint(endpoint: EndpointView) -> dict[str, object]:
    return {
        "id": endpoint.endpoint_id,
        "method": endpoint.method,
        "path": endpoint.path,
        "handler": endpoint.handler,
        "schedulable": endpoint.schedulable,
    }


def _wish(given: object) -> ScheduleWish:
    return ScheduleWish(**record_of(given))


def _time(moment: datetime | None) -> str | None:
    """Write a time as RFC 3339 in UTC."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
