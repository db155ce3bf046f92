"""Schedules of an install, as its extension makes them. Nothing here runs them.

Attacks this stops: an extension that keeps a fleet busy (how many, how often, how large and how often changed is bounded for the install,
exactly and for all daemons together: each change locks one row of the install); one that reaches another install's schedules (tenant and
install come from the resolved call); one that undoes an administrator's stop; a change that wipes what it did not name.

    ScheduleRefusalError    one of the cases that the guest's world knows

not-found           the install has no such schedule, whoever else may have one of that id
validation-failed   values are refused; `fields` says which and why
quota-exceeded      schedules, their payloads or changes a minute are used up
denied              the install is gone or disabled
internal            the registry did not answer; the same request may succeed later
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeVar
from uuid import UUID, uuid5

from registry.database import Database, Session
from registry.domain.errors import RefusalError
from registry.domain.ids import InstallId, ScheduleId, TenantId, VersionId, is_tenant_id, is_uuid, new_id
from registry.domain.records import Endpoint
from registry.repositories.schedules import InstalledEndpoints, NewSchedule, Schedule, ScheduleChange, ScheduleRepository
from registry.services import schedule_rules as rules
from registry.services.schedule_rules import RuleError, Selector
from registry.services.turns import InstallTurns

__all__ = ["Schedule", "ScheduleService"]

Checked = TypeVar("Checked")

DEFAULT_TIMEZONE: Final = "UTC"


class ScheduleCase(StrEnum):
    """The cases of the guest's `scheduler-error`."""

    NOT_FOUND = "not-found"
    VALIDATION_FAILED = "validation-failed"
    QUOTA_EXCEEDED = "quota-exceeded"
    DENIED = "denied"
    INTERNAL = "internal"


class ScheduleRefusalError(Exception):
    """A typed refusal. `case`, `detail` and `fields` go to the guest: they say nothing but what it gave and has."""

    def __init__(self, case: ScheduleCase, detail: str, fields: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{case}: {detail}")
        self.case = case
        self.detail = detail
        self.fields: Mapping[str, str] = MappingProxyType(dict(fields or {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleLimits:
    """What one install may have (CONTRACT §4)."""

    schedules: int = 50
    changes_per_minute: int = 10
    """Of any kind, refused ones included, in every 60 seconds."""
    payload_bytes: int = 2 * 1024 * 1024
    """Of all payloads together, so that a list of them is an answer that a guest can take."""


DEFAULT_LIMITS: Final = ScheduleLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleWish:
    """What an extension asks for. None: not named; "" takes a name or a payload away."""

    endpoint: str | None = None
    """`[METHOD ]/path`."""
    cron: str | None = None
    timezone: str | None = None
    enabled: bool | None = None
    name: str | None = None
    payload: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """An endpoint of the installed version."""

    endpoint_id: str
    """The same for the same version, method and path, on every daemon."""
    method: str
    path: str
    handler: str
    schedulable: bool


class ScheduleService:
    """Answers extensions. Role ext_runner."""

    def __init__(self, database: Database, limits: ScheduleLimits = DEFAULT_LIMITS) -> None:
        self._database = database
        self._limits = limits
        self._turns = InstallTurns()

    async def list_schedules(self, tenant_id: TenantId | str, install_id: InstallId | str) -> tuple[Schedule, ...]:
        """Return the install's schedules, the oldest first.

        Raises:
            ScheduleRefusalError: denied (malformed ids), internal.
        """
        async with self._session(tenant_id, install_id) as session:
            return await ScheduleRepository(session, tenant_id).list_schedules(install_id)

    async def get(self, tenant_id: TenantId | str, install_id: InstallId | str, schedule_id: str) -> Schedule:
        """Return one schedule.

        Raises:
            ScheduleRefusalError: not-found, denied (malformed ids), internal.
        """
        async with self._session(tenant_id, install_id) as session:
            return _found(await ScheduleRepository(session, tenant_id).find(install_id, schedule_id))

    async def list_endpoints(self, tenant_id: TenantId | str, install_id: InstallId | str) -> tuple[EndpointView, ...]:
        """Return the endpoints of the installed version, in the order of its manifest.

        Raises:
            ScheduleRefusalError: denied, internal.
        """
        async with self._session(tenant_id, install_id) as session:
            installed = _callable(await ScheduleRepository(session, tenant_id).find_endpoints(install_id))
        return tuple(_endpoint_view(installed.version_id, endpoint) for endpoint in installed.endpoints)

    async def create(self, tenant_id: TenantId | str, install_id: InstallId | str, wish: ScheduleWish) -> Schedule:
        """Write a new schedule, enabled and in UTC unless the wish says otherwise. Nothing is written where anything is refused.

        Raises:
            ScheduleRefusalError: every case but not-found.
        """
        async with self._changing(tenant_id, install_id) as changing:
            checked = _CheckedWish(wish, changing.endpoints)
            checked.require("endpoint", "cron")
            usage = await changing.schedules.usage_besides(changing.install_id, None, name=checked.name)
            if usage.schedules >= self._limits.schedules:
                raise ScheduleRefusalError(ScheduleCase.QUOTA_EXCEEDED, f"an install has at most {self._limits.schedules} schedules")
            endpoint, cron = checked.essentials(is_name_taken=usage.has_name)
            self._check_payloads(usage.payload_bytes, checked.payload)
            new = NewSchedule(
                schedule_id=ScheduleId(new_id()),
                install_id=changing.install_id,
                name=checked.name,
                endpoint_method=endpoint.method,
                endpoint_path=endpoint.path,
                cron=cron,
                timezone=checked.timezone or DEFAULT_TIMEZONE,
                enabled=wish.enabled is not False,
                payload=checked.payload,
            )
            await changing.schedules.add(new)
            return _found(await changing.schedules.find(changing.install_id, new.schedule_id))

    async def update(self, tenant_id: TenantId | str, install_id: InstallId | str, schedule_id: str, wish: ScheduleWish) -> Schedule:
        """Write what the wish names and keep the rest, also what somebody else writes at the same time.

        Raises:
            ScheduleRefusalError: every case. An extension cannot enable what an administrator stopped, nor what the installed version
                has no endpoint for (validation-failed).
        """
        async with self._changing(tenant_id, install_id) as changing:
            before = _found(await changing.schedules.find(changing.install_id, schedule_id))
            checked = _CheckedWish(wish, changing.endpoints)
            if wish.enabled:
                checked.check_enabling(before, changing.endpoints)
            usage = await changing.schedules.usage_besides(changing.install_id, before.schedule_id, name=checked.name)
            checked.refuse(is_name_taken=usage.has_name)
            if checked.payload is not None:
                self._check_payloads(usage.payload_bytes, checked.payload)
            named = ScheduleChange(
                endpoint_method=None if checked.endpoint is None else checked.endpoint.method,
                endpoint_path=None if checked.endpoint is None else checked.endpoint.path,
                cron=checked.cron,
                timezone=checked.timezone,
                enabled=wish.enabled,
                name=wish.name,
                payload=wish.payload,
            )
            # An administrator may have deleted it since.
            if not await changing.schedules.change(changing.install_id, schedule_id, named):
                raise _not_found()
            return _found(await changing.schedules.find(changing.install_id, schedule_id))

    async def delete(self, tenant_id: TenantId | str, install_id: InstallId | str, schedule_id: str) -> None:
        """Delete a schedule.

        Raises:
            ScheduleRefusalError: not-found, quota-exceeded (changes a minute), denied, internal.
        """
        async with self._changing(tenant_id, install_id) as changing:
            if not await changing.schedules.delete(changing.install_id, schedule_id):
                raise _not_found()

    def _check_payloads(self, others_bytes: int, payload: str | None) -> None:
        if others_bytes + len((payload or "").encode()) > self._limits.payload_bytes:
            detail = f"the payloads of an install take at most {self._limits.payload_bytes} bytes together"
            raise ScheduleRefusalError(ScheduleCase.QUOTA_EXCEEDED, detail)

    @asynccontextmanager
    async def _changing(self, tenant_id: str, install_id: str) -> AsyncIterator[_Changing]:
        """Count a change and lock the install's schedules. What is refused inside is still counted, and has written nothing else.

        Raises:
            ScheduleRefusalError: quota-exceeded, denied, internal; what is raised inside.
        """
        refusal: ScheduleRefusalError | None = None
        async with self._turns.of(tenant_id, install_id), self._session(tenant_id, install_id) as session:
            schedules = ScheduleRepository(session, tenant_id)
            taken = await schedules.take_change(InstallId(install_id), allowed=self._limits.changes_per_minute)
            if taken is False:
                raise ScheduleRefusalError(
                    ScheduleCase.QUOTA_EXCEEDED,
                    f"an install changes its schedules at most {self._limits.changes_per_minute} times a minute",
                )
            try:
                installed = _callable(None if taken is None else await schedules.find_endpoints(install_id))
                yield _Changing(schedules, InstallId(install_id), installed.endpoints)
            except ScheduleRefusalError as exc:
                # SECURITY: not raised here, or it would take the count back, and refused attempts would cost nothing.
                refusal = exc
        if refusal is not None:
            raise refusal

    @asynccontextmanager
    async def _session(self, tenant_id: str, install_id: str) -> AsyncIterator[Session]:
        if not is_tenant_id(tenant_id) or not is_uuid(install_id):
            raise ScheduleRefusalError(ScheduleCase.DENIED, "the tenant or install id is malformed")
        try:
            async with self._database.tenant_session(tenant_id) as session:
                yield session
        except RefusalError as exc:
            raise ScheduleRefusalError(ScheduleCase.INTERNAL, exc.public_detail) from exc


@dataclass(frozen=True, slots=True)
class _Changing:
    """A transaction in which the install's schedules are locked."""

    schedules: ScheduleRepository
    install_id: InstallId
    endpoints: Sequence[Endpoint]


class _CheckedWish:
    """A wish of which every field is checked by itself, so that an extension hears of all that is wrong at once."""

    def __init__(self, wish: ScheduleWish, endpoints: Sequence[Endpoint]) -> None:
        self._wish = wish
        self._problems: dict[str, str] = {}
        self.endpoint = self._check("endpoint", wish.endpoint, lambda text: rules.choose_endpoint(rules.read_selector(text), endpoints))
        self.cron = self._check("cron", wish.cron, rules.checked_cron)
        self.timezone = self._check("timezone", wish.timezone, rules.checked_timezone)
        self.name = self._check("name", wish.name, rules.checked_name)
        self.payload = self._check("payload", wish.payload, rules.checked_payload)

    def require(self, *names: str) -> None:
        """Note what is missing."""
        self._problems |= {name: "it is missing" for name in names if getattr(self._wish, name) is None}

    def check_enabling(self, before: Schedule, endpoints: Sequence[Endpoint]) -> None:
        """Note what keeps a schedule from being enabled."""
        # SECURITY: or an extension would undo what an administrator decided.
        if before.stopped_by is not None:
            self._problems["enabled"] = "an administrator stopped it"
        if self._wish.endpoint is None:
            selector = Selector(before.endpoint_method, before.endpoint_path)
            self._check("endpoint", "", lambda _: rules.choose_endpoint(selector, endpoints))

    def essentials(self, *, is_name_taken: bool) -> tuple[Endpoint, str]:
        """Return what a new schedule must have.

        Raises:
            ScheduleRefusalError: validation-failed.
        """
        self.refuse(is_name_taken=is_name_taken)
        if self.endpoint is None or self.cron is None:  # pragma: no cover - `require` noted it
            raise ScheduleRefusalError(ScheduleCase.INTERNAL, "a new schedule has an endpoint and a time")
        return self.endpoint, self.cron

    def refuse(self, *, is_name_taken: bool) -> None:
        """Raise for what was noted.

        Raises:
            ScheduleRefusalError: validation-failed.
        """
        if is_name_taken:
            self._problems["name"] = "another schedule has this name"
        if self._problems:
            raise ScheduleRefusalError(ScheduleCase.VALIDATION_FAILED, "the schedule is not valid", self._problems)

    def _check(self, name: str, value: str | None, rule: Callable[[str], Checked]) -> Checked | None:
        if value is None:
            return None
        try:
            return rule(value)
        except RuleError as exc:
            self._problems[name] = str(exc)
            return None


def _endpoint_view(version_id: VersionId, endpoint: Endpoint) -> EndpointView:
    return EndpointView(
        endpoint_id=str(uuid5(UUID(version_id), f"{endpoint.method} {endpoint.path}")),
        method=endpoint.method,
        path=endpoint.path,
        handler=endpoint.handler,
        schedulable=rules.is_schedulable(endpoint),
    )


def _callable(installed: InstalledEndpoints | None) -> InstalledEndpoints:
    if installed is None or not installed.is_enabled:
        raise ScheduleRefusalError(ScheduleCase.DENIED, "the extension is not installed or not enabled")
    return installed


def _found(schedule: Schedule | None) -> Schedule:
    if schedule is None:
        raise _not_found()
    return schedule


def _not_found() -> ScheduleRefusalError:
    return ScheduleRefusalError(ScheduleCase.NOT_FOUND, "there is no such schedule")
