"""Schedules of one tenant's installs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import RowMapping, TextClause, text
from sqlalchemy.exc import IntegrityError

from registry.database import Session
from registry.domain.ids import InstallId, ScheduleId, TenantId, VersionId
from registry.domain.records import Endpoint
from registry.repositories.installs import ENABLED, endpoint_of
from registry.repositories.searchable import uuid_or_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One schedule."""

    schedule_id: ScheduleId
    name: str | None
    endpoint_method: str
    endpoint_path: str
    cron: str
    timezone: str
    enabled: bool
    """As the extension wants it; it runs only if nobody stopped it."""
    stopped_by: str | None
    """The administrator who stopped it. The extension cannot undo that."""
    payload: str | None
    revision: int
    last_run_at: datetime | None
    last_run_status: str | None
    last_error: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def is_active(self) -> bool:
        """Whether it is to run."""
        return self.enabled and self.stopped_by is None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSchedule:
    """A schedule to write."""

    schedule_id: ScheduleId
    install_id: InstallId
    name: str | None
    endpoint_method: str
    endpoint_path: str
    cron: str
    timezone: str
    enabled: bool
    payload: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleChange:
    """What a change names; None keeps what is there."""

    endpoint_method: str | None = None
    endpoint_path: str | None = None
    cron: str | None = None
    timezone: str | None = None
    enabled: bool | None = None
    name: str | None = None
    """"" takes it away."""
    payload: str | None = None
    """"" takes it away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleUsage:
    """What an install has besides the schedule that is looked at."""

    schedules: int
    payload_bytes: int
    has_name: bool
    """Whether another one has the name that was asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledEndpoints:
    """The endpoints of the version that is installed now."""

    version_id: VersionId
    is_enabled: bool
    """Whether the install may be called."""
    endpoints: tuple[Endpoint, ...]


_COLUMNS: Final = """
select s.id::text as schedule_id, s.name, s.endpoint_method, s.endpoint_path, s.cron, s.timezone, s.enabled, s.stopped_by, s.payload,
       s.revision, s.last_run_at, s.last_run_status, s.last_error, s.created_at, s.updated_at
"""
_OF_INSTALL: Final = "s.tenant_id = :tenant_id and s.install_id = cast(:install_id as uuid)"
_ONE: Final = f"{_OF_INSTALL} and s.id = cast(:schedule_id as uuid)"
_LIST: Final = text(f"{_COLUMNS} from extension_schedule s where {_OF_INSTALL} order by s.created_at, s.id")
_GET: Final = text(f"{_COLUMNS} from extension_schedule s where {_ONE}")
_ENDPOINTS: Final = text(
    """
select v.id::text as version_id, v.api_endpoints, i.status
  from tenant_extension_install i join extension_version v on v.id = i.version_id and v.state = 'published'
 where i.tenant_id = :tenant_id and i.id = cast(:install_id as uuid) and i.status <> 'uninstalled'
"""
)
_LATELY: Final = "unnest(c.changed_at) t where t > clock_timestamp() - interval '1 minute'"
_TAKE_CHANGE: Final = text(
    f"""
insert into extension_schedule_changes as c (tenant_id, install_id, changed_at)
values (:tenant_id, cast(:install_id as uuid), array[clock_timestamp()])
on conflict (tenant_id, install_id) do update
   set changed_at = array(select t from {_LATELY}) || clock_timestamp()
 where c.tenant_id = :tenant_id and (select count(*) from {_LATELY}) < :allowed
returning 1
"""  # noqa: S608 - constants
)
_USAGE: Final = text(
    f"""
select count(*) as schedules, coalesce(sum(octet_length(s.payload)), 0)::bigint as payload_bytes,
       coalesce(bool_or(s.name = cast(:name as text)), false) as has_name
  from extension_schedule s where {_OF_INSTALL} and s.id is distinct from cast(:schedule_id as uuid)
"""  # noqa: S608 - constants
)
_ADD: Final = text(
    """
insert into extension_schedule (tenant_id, id, install_id, name, endpoint_method, endpoint_path, cron, timezone, enabled, payload)
values (:tenant_id, cast(:schedule_id as uuid), cast(:install_id as uuid), :name, :endpoint_method, :endpoint_path, :cron, :timezone,
        :enabled, :payload)
"""
)
# Each column by itself: what a change does not name is not written, so that it cannot undo what somebody else wrote meanwhile.
_CHANGE: Final = text(
    f"""
update extension_schedule s
   set endpoint_method = coalesce(cast(:endpoint_method as text), s.endpoint_method),
       endpoint_path = coalesce(cast(:endpoint_path as text), s.endpoint_path),
       cron = coalesce(cast(:cron as text), s.cron),
       timezone = coalesce(cast(:timezone as text), s.timezone),
       enabled = coalesce(cast(:enabled as boolean), s.enabled),
       name = nullif(coalesce(cast(:name as text), s.name), ''),
       payload = nullif(coalesce(cast(:payload as text), s.payload), ''),
       revision = s.revision + 1, updated_at = now()
 where {_ONE}
returning s.id
"""  # noqa: S608 - constants
)
_STOP: Final = text(
    f"""
update extension_schedule s
   set enabled = s.enabled or cast(:actor as text) is null, stopped_by = cast(:actor as text), revision = s.revision + 1, updated_at = now()
 where {_ONE}
returning s.id
"""  # noqa: S608 - constants
)
_DELETE: Final = text(f"delete from extension_schedule s where {_ONE} returning s.id")  # noqa: S608 - constants


class ScheduleRepository:
    """Tables `extension_schedule` and `extension_schedule_changes` of one tenant.

    `take_change`, `add` and `change`: role ext_runner; `stop` and `resume`: ext_admin; the others: both. Who adds or changes takes a change
    first: that locks the install's row, so that changes of one install come one after the other, and others do not wait.
    """

    def __init__(self, session: Session, tenant_id: TenantId | str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def list_schedules(self, install_id: InstallId | str) -> tuple[Schedule, ...]:
        """Return an install's schedules, the oldest first."""
        rows = await self._session.execute(_LIST, {"tenant_id": self._tenant_id, "install_id": uuid_or_none(install_id)})
        return tuple(_schedule(row) for row in rows.mappings())

    async def find(self, install_id: InstallId | str, schedule_id: str) -> Schedule | None:
        """Return one schedule of the install."""
        row = await self._first(_GET, install_id, schedule_id=uuid_or_none(schedule_id))
        return None if row is None else _schedule(row)

    async def find_endpoints(self, install_id: InstallId | str) -> InstalledEndpoints | None:
        """Return what can be called. None if the tenant has no such install."""
        row = await self._first(_ENDPOINTS, install_id)
        if row is None:
            return None
        return InstalledEndpoints(
            version_id=VersionId(row["version_id"]),
            is_enabled=row["status"] == ENABLED,
            endpoints=tuple(endpoint_of(document) for document in row["api_endpoints"]),
        )

    async def take_change(self, install_id: InstallId, *, allowed: int) -> bool | None:
        """Count one change and lock the install's row until the end of the transaction.

        Returns:
            False if the last minute has seen `allowed` of them already; None if the tenant has no such install.
        """
        try:
            async with self._session.begin_nested():
                return await self._first(_TAKE_CHANGE, install_id, allowed=allowed) is not None
        except IntegrityError:
            return None  # The foreign key: this tenant has no such install.

    async def usage_besides(self, install_id: InstallId, schedule_id: str | None, *, name: str | None) -> ScheduleUsage:
        """Return what the install has, apart from one schedule, and whether something else has `name`.

        Only after `take_change`, and a statement of its own, so that it sees what the lock waited for.
        """
        parameters = {"tenant_id": self._tenant_id, "install_id": install_id, "schedule_id": schedule_id, "name": name}
        row = (await self._session.execute(_USAGE, parameters)).mappings().one()
        return ScheduleUsage(schedules=row["schedules"], payload_bytes=row["payload_bytes"], has_name=row["has_name"])

    async def add(self, new: NewSchedule) -> None:
        """Write a new schedule."""
        await self._session.execute(_ADD, {"tenant_id": self._tenant_id} | asdict(new))

    async def change(self, install_id: InstallId, schedule_id: str, change: ScheduleChange) -> bool:
        """Write what `change` names. Tell whether there is such a schedule."""
        return await self._first(_CHANGE, install_id, schedule_id=uuid_or_none(schedule_id), **asdict(change)) is not None

    async def stop(self, install_id: InstallId | str, schedule_id: str, *, actor: str) -> bool:
        """Keep a schedule from running, whatever its extension wants. Tell whether there is such a schedule."""
        return await self._first(_STOP, install_id, schedule_id=uuid_or_none(schedule_id), actor=actor) is not None

    async def resume(self, install_id: InstallId | str, schedule_id: str) -> bool:
        """Let a schedule run, also one that its extension disabled. Tell whether there is such a schedule."""
        return await self._first(_STOP, install_id, schedule_id=uuid_or_none(schedule_id), actor=None) is not None

    async def delete(self, install_id: InstallId | str, schedule_id: str) -> bool:
        """Delete a schedule. Tell whether there was one."""
        return await self._first(_DELETE, install_id, schedule_id=uuid_or_none(schedule_id)) is not None

    async def _first(self, statement: TextClause, install_id: InstallId | str, **parameters: object) -> RowMapping | None:
        scope = {"tenant_id": self._tenant_id, "install_id": uuid_or_none(install_id)}
        return (await self._session.execute(statement, scope | parameters)).mappings().first()


def _schedule(row: RowMapping) -> Schedule:
    return Schedule(**{str(name): value for name, value in row.items()})
