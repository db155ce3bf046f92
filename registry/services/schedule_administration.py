"""Schedules of an install, as administrators see and stop them.

Attack this stops: an extension that goes on calling itself after somebody decided that it must not. What an administrator stopped stays
stopped until an administrator lets it go on, whatever the extension asks for; taking the capability away, or disabling the install, keeps
it from making others.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId
from registry.repositories.audit import AuditRepository
from registry.repositories.schedules import InstalledEndpoints, Schedule, ScheduleRepository
from registry.services.refusals import no_such_install
from registry.services.schedule_rules import is_schedulable

__all__ = ["ScheduleAdministration", "ScheduleView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleView:
    """A schedule and its place in what is installed."""

    schedule: Schedule
    has_endpoint: bool
    """Whether the version that is installed now has an endpoint that it can call."""


class ScheduleAdministration:
    """Lets administrators see and stop schedules; every act leaves an audit row of the tenant. Role ext_admin."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_schedules(self, tenant_id: TenantId | str, install_id: str) -> tuple[ScheduleView, ...]:
        """Return an install's schedules, the oldest first.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED (also for another tenant's), REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            schedules = ScheduleRepository(session, tenant_id)
            endpoints = await _installed_endpoints(schedules, install_id)
            return tuple(_view(schedule, endpoints) for schedule in await schedules.list_schedules(install_id))

    async def set_enabled(self, tenant_id: TenantId | str, install_id: str, schedule_id: str, *, enabled: bool, actor: str) -> ScheduleView:
        """Let a schedule run, or stop it: then its extension can change it and delete it, and not enable it.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, NOT_FOUND, REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            schedules = ScheduleRepository(session, tenant_id)
            endpoints = await _installed_endpoints(schedules, install_id)
            if enabled:
                is_there = await schedules.resume(install_id, schedule_id)
            else:
                is_there = await schedules.stop(install_id, schedule_id, actor=actor)
            found = await schedules.find(install_id, schedule_id)
            if not is_there or found is None:
                raise _no_such_schedule()
            action = "schedule.enable" if enabled else "schedule.disable"
            audit = AuditRepository(session, TenantId(tenant_id))
            await audit.record(actor=actor, action=action, subject=schedule_id, detail={"install": install_id})
            return _view(found, endpoints)

    async def delete(self, tenant_id: TenantId | str, install_id: str, schedule_id: str, *, actor: str) -> None:
        """Delete a schedule.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, NOT_FOUND, REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            schedules = ScheduleRepository(session, tenant_id)
            await _installed_endpoints(schedules, install_id)
            if not await schedules.delete(install_id, schedule_id):
                raise _no_such_schedule()
            audit = AuditRepository(session, TenantId(tenant_id))
            await audit.record(actor=actor, action="schedule.delete", subject=schedule_id, detail={"install": install_id})


async def _installed_endpoints(schedules: ScheduleRepository, install_id: str) -> InstalledEndpoints:
    found = await schedules.find_endpoints(install_id)
    if found is None:
        raise no_such_install()
    return found


def _view(schedule: Schedule, installed: InstalledEndpoints) -> ScheduleView:
    place = (schedule.endpoint_method, schedule.endpoint_path)
    has_endpoint = any(place == (endpoint.method, endpoint.path) and is_schedulable(endpoint) for endpoint in installed.endpoints)
    return ScheduleView(schedule=schedule, has_endpoint=has_endpoint)


def _no_such_schedule() -> RefusalError:
    return RefusalError(Reason.NOT_FOUND, "The install has no such schedule; check the id.")
