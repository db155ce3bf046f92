"""T17: every method of every tenant repository with its tenant predicate taken away. Row-level security must still stop it.

Each case attacks tenant A's rows from tenant B's transaction. It runs three times: as it is; with the predicate removed from its SQL; and
built for tenant A inside B's transaction. Without row-level security the second must leak where a case says so, or it would prove nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from registry.database import Database, Session
from registry.domain.egress import SecretBinding
from registry.domain.errors import RefusalError
from registry.domain.ids import InstallId, ScheduleId, TenantId, new_id
from registry.domain.limits import OPERATOR_DEFAULTS, LimitWishes
from registry.domain.measurements import MeasurementKind, first_change, series_of
from registry.domain.records import ExecutionRecord, StorageItem
from registry.migrations.roles import ADMIN, OWNER, RUNNER, libpq_conninfo
from registry.repositories.audit import AuditRepository
from registry.repositories.events import EventRepository, EventUsage, NewEvent
from registry.repositories.executions import ExecutionRepository
from registry.repositories.installs import InstallRepository, InstallView, NewInstall
from registry.repositories.measurements import MeasurementRepository
from registry.repositories.schedules import NewSchedule, ScheduleChange, ScheduleRepository
from registry.repositories.secrets import SecretRepository
from registry.repositories.storage import StorageRepository
from registry.secrets.binding import Binding
from registry.secrets.envelope import Envelope, WrappedKey
from registry.services.events import EventContent, EventOutbox, Publisher
from registry.services.executions import ExecutionRecorder
from registry.services.measurements import MeasurementRecorder
from registry.services.schedules import ScheduleService, ScheduleWish
from registry.services.storage import StorageService
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, execution, install, new_version, publish

_PREDICATE = re.compile(r"\b(?:\w+\.)?tenant_id = %\(tenant_id\)s(?:::\w+)?")
_TABLES = (
    "tenant_extension_install",
    "tenant_extension_install_config",
    "tenant_extension_install_secrets",
    "ext_storage_record",
    "ext_storage_usage",
    "extension_event",
    "extension_schedule",
    "extension_schedule_changes",
    "extension_event_usage",
    "extension_measurement",
    "extension_execution_log",
    "extension_quota_usage",
    "extension_audit_log",
)


@dataclass(frozen=True, slots=True)
class Victim:
    """What tenant A has."""

    install: InstallView
    execution: ExecutionRecord
    event_id: str
    schedule_id: ScheduleId


Attack = Callable[[Session, TenantId, Victim], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    repository: type
    method: str
    role: str
    attack: Attack
    leaks: bool
    """Whether it reaches A's rows without the predicate and without row-level security. False: its keys keep it to its own tenant."""


BINDING = SecretBinding(secret="s", header="authorization", host="evil.example")


def _new_install(victim: Victim) -> NewInstall:
    view = victim.install
    return NewInstall(
        extension_id=view.extension_id,
        version_id=view.version_id,
        granted=["http.fetch"],
        config={"evil": "evil"},
        limits=LimitWishes(),
        endpoint_policy="advisory",
        consented_digest=view.consented_digest,
        actor="evil",
    )


def _installs(
    method: str, attack: Callable[[InstallRepository, Victim], Awaitable[object]], *, leaks: bool = True, role: str = ADMIN
) -> Case:
    return Case(
        repository=InstallRepository,
        method=method,
        role=role,
        attack=lambda session, tenant, victim: attack(InstallRepository(session, tenant), victim),
        leaks=leaks,
    )


def _executions(method: str, attack: Callable[[ExecutionRepository, Victim], Awaitable[object]], *, role: str, leaks: bool = True) -> Case:
    return Case(
        repository=ExecutionRepository,
        method=method,
        role=role,
        attack=lambda session, tenant, victim: attack(ExecutionRepository(session, tenant), victim),
        leaks=leaks,
    )


def _storage(method: str, attack: Callable[[StorageRepository, InstallId], Awaitable[object]], *, leaks: bool = True) -> Case:
    return Case(
        repository=StorageRepository,
        method=method,
        role=RUNNER,
        attack=lambda session, tenant, victim: attack(StorageRepository(session, tenant), victim.install.install_id),
        leaks=leaks,
    )


def _measurements(
    method: str, attack: Callable[[MeasurementRepository, InstallId], Awaitable[object]], *, role: str = RUNNER, leaks: bool = True
) -> Case:
    return Case(
        repository=MeasurementRepository,
        method=method,
        role=role,
        attack=lambda session, tenant, victim: attack(MeasurementRepository(session, tenant), victim.install.install_id),
        leaks=leaks,
    )


def _events(method: str, attack: Callable[[EventRepository, Victim], Awaitable[object]], *, leaks: bool = True) -> Case:
    return Case(
        repository=EventRepository,
        method=method,
        role=RUNNER,
        attack=lambda session, tenant, victim: attack(EventRepository(session, tenant), victim),
        leaks=leaks,
    )


def _secrets(
    method: str, attack: Callable[[SecretRepository, InstallId], Awaitable[object]], *, role: str = ADMIN, leaks: bool = True
) -> Case:
    return Case(
        repository=SecretRepository,
        method=method,
        role=role,
        attack=lambda session, tenant, victim: attack(SecretRepository(session, tenant), victim.install.install_id),
        leaks=leaks,
    )


async def _put_secret(repository: SecretRepository, install_id: InstallId, version: int) -> object:
    # For a tenant of the repository's own; what it writes over is what the statement says.
    place = Binding(tenant_id=OTHER_TENANT, install_id=install_id, name="api_key", version=version)
    return await repository.put(place, _EVIL, expires_at=None, actor="evil")


def _new_event(victim: Victim) -> NewEvent:
    return NewEvent(
        event_id=new_id(),
        install_id=victim.install.install_id,
        extension_id=victim.install.extension_id,
        source="/evil",
        topic="evil",
        ordering_key=None,
        content_type="text/plain",
        data=b"evil",
        depth=1,
        cause_id=None,
        request_id="evil",
    )


_EVIL = Envelope(key=WrappedKey(kek_id="local:evil", wrapped=b"evil"), ciphertext=b"evil")


async def _listed(repository: StorageRepository, install_id: InstallId) -> object:
    return (await repository.list_entries(install_id, "n", after="", prefix="", limit=10, most_bytes=1_000))[0]


async def _overwritten(repository: StorageRepository, install_id: InstallId) -> object:
    items = [StorageItem(key="k", value=b"evil")]
    return (await repository.put(install_id, "n", items, expected=None, limits=OPERATOR_DEFAULTS.storage)).revisions


async def _deleted(repository: StorageRepository, install_id: InstallId) -> object:
    return await repository.delete(install_id, "n", "k", expected=None) != "missing"


def _schedules(
    method: str, attack: Callable[[ScheduleRepository, Victim], Awaitable[object]], *, role: str = RUNNER, leaks: bool = True
) -> Case:
    return Case(
        repository=ScheduleRepository,
        method=method,
        role=role,
        attack=lambda session, tenant, victim: attack(ScheduleRepository(session, tenant), victim),
        leaks=leaks,
    )


def _new_schedule(victim: Victim) -> NewSchedule:
    return NewSchedule(
        schedule_id=ScheduleId(new_id()),
        install_id=victim.install.install_id,
        name="evil",
        endpoint_method="POST",
        endpoint_path="/evil",
        cron="0 0 * * *",
        timezone="UTC",
        enabled=True,
        payload=None,
    )


async def _has_schedules(repository: ScheduleRepository, victim: Victim) -> bool:
    return (await repository.usage_besides(victim.install.install_id, None, name="mine")).schedules > 0


_SERIES = series_of(MeasurementKind.COUNTER, "orders", ())
_CHANGE = {_SERIES: first_change(MeasurementKind.COUNTER, 666.0, datetime.now(UTC))}
CASES = [
    _installs("resolve", lambda repository, victim: repository.resolve(victim.install.extension_name), role=RUNNER),
    _installs("find", lambda repository, victim: repository.find(victim.install.install_id)),
    _installs("list_installs", lambda repository, _: repository.list_installs(limit=10, after=None)),
    _installs("add", lambda repository, victim: repository.add(_new_install(victim)), leaks=False),
    _installs("put_config", lambda repository, victim: repository.put_config(victim.install.install_id, {"evil": "evil"}), leaks=False),
    _installs("set_enabled", lambda repository, victim: repository.set_enabled(victim.install.install_id, enabled=False)),
    _installs("set_grants", lambda repository, victim: repository.set_grants(victim.install.install_id, ["http.fetch"], actor="evil")),
    _installs("set_egress_hosts", lambda repository, victim: repository.set_egress_hosts(victim.install.install_id, ["evil.example"])),
    _installs("set_egress_secrets", lambda repository, victim: repository.set_egress_secrets(victim.install.install_id, [BINDING])),
    _installs("set_limits", lambda repository, victim: repository.set_limits(victim.install.install_id, LimitWishes(storage_bytes=1))),
    _installs("set_egress_count", lambda repository, victim: repository.set_egress_count(victim.install.install_id, 86_400)),
    _installs("uninstall", lambda repository, victim: repository.uninstall(victim.install.install_id, purge=False)),
    _installs("uninstall", lambda repository, victim: repository.uninstall(victim.install.install_id, purge=True)),
    _executions("add_batch", lambda repository, victim: repository.add_batch([victim.execution]), role=RUNNER, leaks=False),
    _executions("list_executions", lambda repository, _: repository.list_executions(limit=10, before=None), role=ADMIN),
    _executions("find", lambda repository, victim: repository.find(victim.execution.execution_id), role=ADMIN),
    _storage("find", lambda repository, install_id: repository.find(install_id, "n", "k")),
    _storage("list_entries", _listed),
    # The functions hold their predicates where this cannot take them away; that row-level security holds in them is what the others show.
    _storage("put", _overwritten, leaks=False),
    _storage("delete", _deleted, leaks=False),
    _measurements("lock", lambda repository, install_id: repository.lock(install_id)),
    _measurements("list_measurements", lambda repository, install_id: repository.list_measurements(install_id)),
    _measurements("add", lambda repository, install_id: repository.add(install_id, _CHANGE), leaks=False),
    _measurements("forget", lambda repository, install_id: repository.forget(install_id), role=ADMIN),
    _events("lock_usage", lambda repository, victim: repository.lock_usage(victim.install.install_id)),
    _events("find_depth", lambda repository, victim: repository.find_depth(victim.event_id)),
    # Names of extensions are no tenant's.
    _events("is_any_registered", lambda repository, _: repository.is_any_registered(["com.nobody"]), leaks=False),
    _events(
        "add",
        lambda repository, victim: repository.add(
            _new_event(victim), EventUsage(last_sequence=99, minute_events=0, day_events=0, day_bytes=0)
        ),
        leaks=False,
    ),
    _secrets("lock_install", lambda repository, install_id: repository.lock_install(install_id, expires_at=None)),
    _secrets("find_install", lambda repository, install_id: repository.find_install(install_id)),
    _secrets("versions", lambda repository, install_id: repository.versions(install_id)),
    _secrets("put", lambda repository, install_id: _put_secret(repository, install_id, 1), leaks=False),
    _secrets("put", lambda repository, install_id: _put_secret(repository, install_id, 2)),
    _secrets("delete", lambda repository, install_id: repository.delete(install_id, "api_key")),
    _secrets("list_secrets", lambda repository, install_id: repository.list_secrets(install_id)),
    _secrets("find", lambda repository, install_id: repository.find(install_id, "api_key"), role=RUNNER),
    _secrets("names", lambda repository, install_id: repository.names(install_id), role=RUNNER),
    _schedules("list_schedules", lambda repository, victim: repository.list_schedules(victim.install.install_id)),
    _schedules("find", lambda repository, victim: repository.find(victim.install.install_id, victim.schedule_id)),
    _schedules("find_endpoints", lambda repository, victim: repository.find_endpoints(victim.install.install_id)),
    _schedules("take_change", lambda repository, victim: repository.take_change(victim.install.install_id, allowed=10), leaks=False),
    _schedules("usage_besides", _has_schedules),
    _schedules("add", lambda repository, victim: repository.add(_new_schedule(victim)), leaks=False),
    _schedules(
        "change",
        lambda repository, victim: repository.change(victim.install.install_id, victim.schedule_id, ScheduleChange(payload="[666]")),
    ),
    _schedules("stop", lambda repository, victim: repository.stop(victim.install.install_id, victim.schedule_id, actor="evil"), role=ADMIN),
    _schedules("resume", lambda repository, victim: repository.resume(victim.install.install_id, victim.schedule_id), role=ADMIN),
    _schedules("delete", lambda repository, victim: repository.delete(victim.install.install_id, victim.schedule_id)),
    _schedules("delete", lambda repository, victim: repository.delete(victim.install.install_id, victim.schedule_id), role=ADMIN),
    Case(
        repository=AuditRepository,
        method="record",
        role=ADMIN,
        attack=lambda session, tenant, _: AuditRepository(session, tenant).record(actor="evil", action="evil.evil", subject="evil"),
        leaks=False,
    ),
]
_each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.repository.__name__}.{case.method}")


def test_cases__cover_every_method_of_every_tenant_repository() -> None:
    for repository in {case.repository for case in CASES}:
        methods = {name for name, _ in inspect.getmembers(repository, inspect.iscoroutinefunction) if not name.startswith("_")}
        assert methods == {case.method for case in CASES if case.repository is repository}


@contextmanager
def _without_predicate(database: Database) -> Iterator[list[int]]:
    """Take `tenant_id = <the tenant>` out of every statement; count how often."""
    removed: list[int] = []

    def mutate(_c: object, _cursor: object, statement: str, parameters: Any, _context: object, _many: object) -> tuple[str, Any]:
        mutated, count = _PREDICATE.subn("true", statement)
        removed.append(count)
        return mutated, parameters

    event.listen(database._engine.sync_engine, "before_cursor_execute", mutate, retval=True)
    try:
        yield removed
    finally:
        event.remove(database._engine.sync_engine, "before_cursor_execute", mutate)


def _rows_of(urls: Mapping[str, str], tenant: str) -> dict[str, list[Any]]:
    with psycopg.connect(libpq_conninfo(urls[OWNER])) as connection:
        return {
            table: sorted(
                str(row) for row in connection.execute(f"select t.* from {table} t where tenant_id = %s".encode(), (tenant,)).fetchall()
            )
            for table in _TABLES
        }


async def _victim(urls: Mapping[str, str]) -> Victim:
    admin = await Database.connect(urls[ADMIN], expected_role=ADMIN)
    runner = await Database.connect(urls[RUNNER], expected_role=RUNNER)
    schedulable = {"method": "POST", "path": "/report", "schedulable": True}
    await publish(admin, new_version(endpoints=[schedulable]))
    view = await install(admin)
    schedule = await ScheduleService(runner).create(
        TENANT, view.install_id, ScheduleWish(endpoint="/report", cron="0 3 * * *", name="mine", payload='["secret of A"]')
    )
    await StorageService(runner).put(TENANT, view.install_id, "n", StorageItem(key="k", value=b"secret of A"))
    record = execution(view)
    recorder = ExecutionRecorder(runner)
    await recorder.start()
    recorder.record(record)
    assert await recorder.aclose() == 0
    measurements = MeasurementRecorder(runner)
    measurements.record(TENANT, view.install_id, kind=MeasurementKind.COUNTER, name="orders", value=1.0)
    await measurements.flush()
    publisher = Publisher(
        tenant_id=TENANT,
        install_id=view.install_id,
        extension_id=view.extension_id,
        extension_name=view.extension_name,
        request_id="r1",
        follows_event=False,
        event_id=None,
    )
    event_id = await EventOutbox(runner).publish(
        publisher, EventContent(topic="note.added", content_type="text/plain", data=b"secret of A")
    )
    async with admin.tenant_session(TENANT) as session:
        place = Binding(tenant_id=TENANT, install_id=view.install_id, name="api_key", version=1)
        sealed = Envelope(key=WrappedKey(kek_id="local:a", wrapped=b"wrapped"), ciphertext=b"secret of A")
        assert await SecretRepository(session, TENANT).put(place, sealed, expires_at=None, actor="alice")
    await runner.aclose()
    await admin.aclose()
    return Victim(install=view, execution=record, event_id=event_id, schedule_id=schedule.schedule_id)


async def _attack(database: Database, case: Case, victim: Victim, *, as_tenant: TenantId) -> object:
    """Run the case in B's transaction; what is refused has reached nothing."""
    try:
        async with database.tenant_session(OTHER_TENANT) as session:
            return await case.attack(session, as_tenant, victim)
    except RefusalError:
        return None


def _reveals(case: Case, result: object) -> bool:
    if case.method in {"add", "add_batch"}:
        return False  # What it returns is B's own; A's rows are compared instead.
    return result not in (None, False, (), {})


@_each_case
async def test_predicate__removed__row_level_security_stops_it(database_urls: Mapping[str, str], case: Case) -> None:
    victim = await _victim(database_urls)
    before = _rows_of(database_urls, TENANT)
    database = await Database.connect(database_urls[case.role], expected_role=case.role)
    with _without_predicate(database) as removed:
        result = await _attack(database, case, victim, as_tenant=OTHER_TENANT)
    await database.aclose()
    if case.leaks:
        assert sum(removed) >= 1, "the mutation changed nothing"
    assert not _reveals(case, result)
    assert _rows_of(database_urls, TENANT) == before


@_each_case
async def test_repository__built_for_another_tenant__row_level_security_stops_it(database_urls: Mapping[str, str], case: Case) -> None:
    victim = await _victim(database_urls)
    before = _rows_of(database_urls, TENANT)
    database = await Database.connect(database_urls[case.role], expected_role=case.role)
    result = await _attack(database, case, victim, as_tenant=TENANT)
    await database.aclose()
    assert not _reveals(case, result)
    assert _rows_of(database_urls, TENANT) == before


@_each_case
async def test_repository__asked_for_another_tenants_ids__finds_and_changes_nothing(database_urls: Mapping[str, str], case: Case) -> None:
    victim = await _victim(database_urls)
    before = _rows_of(database_urls, TENANT)
    database = await Database.connect(database_urls[case.role], expected_role=case.role)
    result = await _attack(database, case, victim, as_tenant=OTHER_TENANT)
    await database.aclose()
    assert not _reveals(case, result)
    assert _rows_of(database_urls, TENANT) == before


@_each_case
async def test_mutation__without_row_level_security__would_leak(private_database_urls: Mapping[str, str], case: Case) -> None:
    """The proof that the tests above can fail."""
    victim = await _victim(private_database_urls)
    with psycopg.connect(libpq_conninfo(private_database_urls[OWNER])) as connection:
        for table in _TABLES:
            connection.execute(f"alter table {table} disable row level security, no force row level security".encode())
    before = _rows_of(private_database_urls, TENANT)
    database = await Database.connect(private_database_urls[case.role], expected_role=case.role)
    with _without_predicate(database):
        result = await _attack(database, case, victim, as_tenant=OTHER_TENANT)
    await database.aclose()
    assert (_reveals(case, result) or _rows_of(private_database_urls, TENANT) != before) == case.leaks


@pytest.mark.parametrize("role", [ADMIN, RUNNER])
async def test_no_tenant__every_tenant_table__looks_empty(database_urls: Mapping[str, str], role: str) -> None:
    await _victim(database_urls)
    with psycopg.connect(libpq_conninfo(database_urls[role])) as connection:
        readable = ("tenant_extension_install", "tenant_extension_install_config", "ext_storage_usage", "extension_quota_usage")
        for table in (*readable, "extension_event", "extension_event_usage", "extension_measurement", "extension_schedule"):
            for tenant in (None, "", "*", "TENANT-A", "tenant-a ", "%"):
                if tenant is not None:
                    connection.execute("select set_config('app.tenant_id', %s, true)", (tenant,))
                assert connection.execute(f"select count(*) from {table}".encode()).fetchone() == (0,), (table, tenant)
                connection.rollback()


async def test_references__another_tenants_install__cannot_be_named(database_urls: Mapping[str, str]) -> None:
    """Foreign keys ignore row-level security (N9): the tenant is part of them."""
    victim = await _victim(database_urls)
    with psycopg.connect(libpq_conninfo(database_urls[ADMIN])) as connection:
        connection.execute("select set_config('app.tenant_id', %s, true)", (OTHER_TENANT,))
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            connection.execute(
                """insert into extension_event_subscription (tenant_id, id, install_id, topic, handler)
                   values (%s, gen_random_uuid(), %s, 't', 'h')""",
                (OTHER_TENANT, victim.install.install_id),
            )


async def test_conflict__another_tenants_id__is_not_revealed(database_urls: Mapping[str, str]) -> None:
    """A unique violation must not tell B that A's id exists (N9)."""
    victim = await _victim(database_urls)
    view = victim.install
    with psycopg.connect(libpq_conninfo(database_urls[ADMIN])) as connection:
        connection.execute("select set_config('app.tenant_id', %s, true)", (OTHER_TENANT,))
        connection.execute(
            """insert into tenant_extension_install (tenant_id, id, registry_id, version_id, consented_digest, granted_by)
               values (%s, %s, %s, %s, 'x', 'x')""",
            (OTHER_TENANT, view.install_id, view.extension_id, view.version_id),
        )
        assert connection.execute("select count(*) from tenant_extension_install").fetchone() == (1,)


@pytest.mark.parametrize(("setting", "tenant", "allowed"), [("", "*", True), ("tenant-a", "tenant-a", True), ("", "tenant-a", False)])
async def test_audit__scope__is_the_transactions(database_urls: Mapping[str, str], setting: str, tenant: str, allowed: bool) -> None:
    insert = "insert into extension_audit_log (tenant_id, id, actor, action, subject) values (%s, gen_random_uuid(), 'a', 'b', 'c')"
    with psycopg.connect(libpq_conninfo(database_urls[ADMIN])) as connection:
        connection.execute("select set_config('app.tenant_id', %s, true)", (setting,))
        if allowed:
            assert connection.execute(insert, (tenant,)).rowcount == 1
        else:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
                connection.execute(insert, (tenant,))


@pytest.mark.parametrize("tenant", ["*", "tenant-b"])
async def test_audit__tenants_transaction__cannot_write_for_the_platform_or_another(database_urls: Mapping[str, str], tenant: str) -> None:
    insert = "insert into extension_audit_log (tenant_id, id, actor, action, subject) values (%s, gen_random_uuid(), 'a', 'b', 'c')"
    with psycopg.connect(libpq_conninfo(database_urls[ADMIN])) as connection:
        connection.execute("select set_config('app.tenant_id', 'tenant-a', true)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            connection.execute(insert, (tenant,))
