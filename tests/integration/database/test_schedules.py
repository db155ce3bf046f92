"""Schedules on PostgreSQL: kept and changed as named, bounded under concurrency, the install's own, and never half written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import event

from registry.database import Database, _build_engine
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import InstallId, new_id
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import ADMIN, OWNER, RUNNER, libpq_conninfo
from registry.repositories.schedules import Schedule
from registry.services.installing import InstallService
from registry.services.schedule_administration import ScheduleAdministration
from registry.services.schedules import DEFAULT_LIMITS, ScheduleCase, ScheduleLimits, ScheduleRefusalError, ScheduleService, ScheduleWish
from tests.fakes.counting_database import CountingDatabase
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, UNKNOWN_ID, install, new_version, publish

NAME = "com.acme.notes"
ENDPOINTS: tuple[dict[str, Any], ...] = (
    {"method": "POST", "path": "/report", "handler": "report", "schedulable": True},
    {"method": "GET", "path": "/sync", "handler": "sync", "schedulable": True},
    {"method": "GET", "path": "/notes/:id", "handler": "note", "schedulable": True},
    {"method": "POST", "path": "/admin", "handler": "admin", "roles": ["admin"], "schedulable": True},
    {"method": "POST", "path": "/quiet", "handler": "quiet"},
)
GRANTED = ("scheduler.manage",)
WISH = ScheduleWish(endpoint="POST /report", cron="0 3 * * *")
FREE = replace(DEFAULT_LIMITS, changes_per_minute=1_000)


async def prepared(admin: Database) -> InstallId:
    await publish(admin, new_version(capabilities=GRANTED, endpoints=ENDPOINTS))
    return (await install(admin, granted=GRANTED)).install_id


@pytest_asyncio.fixture
async def install_id(admin_database: Database) -> AsyncIterator[InstallId]:
    yield await prepared(admin_database)


async def _refused(attempt: Awaitable[object], case: ScheduleCase, *fields: str) -> ScheduleRefusalError:
    with pytest.raises(ScheduleRefusalError) as caught:
        await attempt
    assert (caught.value.case, set(caught.value.fields)) == (case, set(fields)), caught.value
    assert caught.value.detail
    return caught.value


def _rows(urls: Mapping[str, str]) -> list[Any]:
    with psycopg.connect(libpq_conninfo(urls[OWNER])) as connection:
        return connection.execute("select * from extension_schedule order by id").fetchall()


async def test_created__as_asked_with_defaults__and_read_back(runner_database: Database, install_id: InstallId) -> None:
    schedules = ScheduleService(runner_database)
    plain = await schedules.create(TENANT, install_id, WISH)
    assert (plain.endpoint_method, plain.endpoint_path, plain.cron, plain.timezone) == ("POST", "/report", "0 3 * * *", "UTC")
    assert (plain.enabled, plain.is_active, plain.name, plain.payload, plain.revision) == (True, True, None, None, 1)
    assert (plain.last_run_at, plain.last_run_status, plain.last_error) == (None, None, None)
    full = await schedules.create(
        TENANT,
        install_id,
        ScheduleWish(
            endpoint="/sync", cron=" */5 *  * * * ", timezone="Europe/Berlin", enabled=False, name="Sync é", payload=' {"a": "\\u0000"} '
        ),
    )
    assert (full.endpoint_method, full.endpoint_path, full.cron, full.timezone) == ("GET", "/sync", "*/5 * * * *", "Europe/Berlin")
    assert (full.enabled, full.is_active, full.name, full.payload) == (False, False, "Sync é", ' {"a": "\\u0000"} ')
    assert await schedules.get(TENANT, install_id, full.schedule_id) == full
    assert await schedules.list_schedules(TENANT, install_id) == (plain, full)
    await schedules.delete(TENANT, install_id, plain.schedule_id)
    await _refused(schedules.delete(TENANT, install_id, plain.schedule_id), ScheduleCase.NOT_FOUND)
    assert await schedules.list_schedules(TENANT, install_id) == (full,)


async def test_refused__says_every_field_at_once_and_writes_nothing(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    schedules = ScheduleService(runner_database)
    await schedules.create(TENANT, install_id, replace(WISH, name="taken"))
    before = _rows(database_urls)
    wrong = ScheduleWish(endpoint="/no", cron="* * * * *", timezone="../x", name="n" * 129, payload="1")
    for attempt in (
        schedules.create(TENANT, install_id, wrong),
        schedules.update(TENANT, install_id, str(before[0][1]), wrong),
    ):
        await _refused(attempt, ScheduleCase.VALIDATION_FAILED, "endpoint", "cron", "timezone", "name", "payload")
    await _refused(schedules.create(TENANT, install_id, ScheduleWish()), ScheduleCase.VALIDATION_FAILED, "endpoint", "cron")
    await _refused(schedules.create(TENANT, install_id, replace(WISH, name="taken")), ScheduleCase.VALIDATION_FAILED, "name")
    assert _rows(database_urls) == before


@pytest.mark.parametrize("endpoint", ["/notes/:id", "/notes/7", "/admin", "/quiet", "GET /report", "/report/", "/Report"])
async def test_endpoint__not_meant_for_it__is_refused(runner_database: Database, install_id: InstallId, endpoint: str) -> None:
    attempt = ScheduleService(runner_database).create(TENANT, install_id, replace(WISH, endpoint=endpoint))
    await _refused(attempt, ScheduleCase.VALIDATION_FAILED, "endpoint")


_FULL = ScheduleWish(endpoint="POST /report", cron="0 3 * * *", timezone="Asia/Tokyo", enabled=False, name="n", payload="[1]")


@pytest.mark.parametrize(
    ("wish", "changed"),
    [
        (ScheduleWish(), {}),
        (ScheduleWish(cron="0 4 * * *"), {"cron": "0 4 * * *"}),
        (ScheduleWish(timezone="UTC"), {"timezone": "UTC"}),
        (ScheduleWish(enabled=True), {"enabled": True}),
        (ScheduleWish(endpoint="/sync"), {"endpoint_method": "GET", "endpoint_path": "/sync"}),
        (ScheduleWish(name="n"), {}),
        (ScheduleWish(name="m"), {"name": "m"}),
        (ScheduleWish(name=""), {"name": None}),
        (ScheduleWish(payload='{"b":2}'), {"payload": '{"b":2}'}),
        (ScheduleWish(payload=""), {"payload": None}),
    ],
)
async def test_update__keeps_what_it_does_not_name(
    runner_database: Database, install_id: InstallId, wish: ScheduleWish, changed: dict[str, Any]
) -> None:
    schedules = ScheduleService(runner_database)
    before = await schedules.create(TENANT, install_id, _FULL)
    after = await schedules.update(TENANT, install_id, before.schedule_id, wish)
    assert after == replace(before, **changed, revision=2, updated_at=after.updated_at)
    assert after.updated_at > before.updated_at


async def test_updates_at_once__of_different_fields__none_is_lost(runner_database: Database, install_id: InstallId) -> None:
    schedules = ScheduleService(runner_database, FREE)
    one = await schedules.create(TENANT, install_id, WISH)
    wishes = [
        ScheduleWish(cron="0 4 * * *"),
        ScheduleWish(timezone="Asia/Tokyo"),
        ScheduleWish(enabled=False),
        ScheduleWish(name="n"),
        ScheduleWish(payload="[]"),
        ScheduleWish(endpoint="GET /sync"),
    ]
    await asyncio.gather(*(schedules.update(TENANT, install_id, one.schedule_id, wish) for wish in wishes))
    after = await schedules.get(TENANT, install_id, one.schedule_id)
    assert (after.cron, after.timezone, after.enabled, after.name, after.payload) == ("0 4 * * *", "Asia/Tokyo", False, "n", "[]")
    assert (after.endpoint_method, after.endpoint_path, after.revision) == ("GET", "/sync", 7)


async def test_crowd_of_one_install__holds_one_connection(
    admin_database: Database, runner_database: Database, install_id: InstallId
) -> None:
    theirs = (await install(admin_database, OTHER_TENANT, granted=GRANTED)).install_id
    counting = CountingDatabase(runner_database)
    schedules = ScheduleService(cast("Database", counting))
    crowd = [asyncio.ensure_future(schedules.create(TENANT, install_id, WISH)) for _ in range(10)]
    await schedules.create(OTHER_TENANT, theirs, WISH)
    assert len({one.schedule_id for one in await asyncio.gather(*crowd)}) == 10
    assert counting.most == 2, "one for each install"


async def _outcomes(*attempts: Awaitable[Schedule]) -> tuple[int, list[ScheduleCase]]:
    answers = await asyncio.gather(*attempts, return_exceptions=True)
    assert all(isinstance(answer, Schedule | ScheduleRefusalError) for answer in answers), answers
    refusals = [answer.case for answer in answers if isinstance(answer, ScheduleRefusalError)]
    return len(answers) - len(refusals), refusals


async def test_quota__many_at_once__is_exact(runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId) -> None:
    schedules = ScheduleService(runner_database, replace(FREE, schedules=3))
    made, refusals = await _outcomes(*(schedules.create(TENANT, install_id, WISH) for _ in range(5)))
    assert (made, refusals) == (3, [ScheduleCase.QUOTA_EXCEEDED] * 2)
    first = _rows(database_urls)[0]
    await schedules.update(TENANT, install_id, str(first[1]), ScheduleWish(name="still possible"))
    await schedules.delete(TENANT, install_id, str(first[1]))
    await schedules.create(TENANT, install_id, WISH)


async def test_name__many_at_once__one_has_it(runner_database: Database, install_id: InstallId) -> None:
    schedules = ScheduleService(runner_database, FREE)
    made, refusals = await _outcomes(*(schedules.create(TENANT, install_id, replace(WISH, name="one")) for _ in range(5)))
    assert (made, refusals) == (1, [ScheduleCase.VALIDATION_FAILED] * 4)
    others = [await schedules.create(TENANT, install_id, WISH) for _ in range(2)]
    renamed, refusals = await _outcomes(
        *(schedules.update(TENANT, install_id, other.schedule_id, ScheduleWish(name="two")) for other in others)
    )
    assert (renamed, refusals) == (1, [ScheduleCase.VALIDATION_FAILED])


async def test_payloads__together__at_and_over_their_limit(runner_database: Database, install_id: InstallId) -> None:
    schedules = ScheduleService(runner_database, replace(FREE, payload_bytes=10))
    first = await schedules.create(TENANT, install_id, replace(WISH, payload='["é"]'))  # six bytes
    await _refused(schedules.create(TENANT, install_id, replace(WISH, payload="[123]")), ScheduleCase.QUOTA_EXCEEDED)
    second = await schedules.create(TENANT, install_id, replace(WISH, payload="[12]"))
    over = schedules.update(TENANT, install_id, second.schedule_id, ScheduleWish(payload="[123]"))
    await _refused(over, ScheduleCase.QUOTA_EXCEEDED)
    await schedules.update(TENANT, install_id, second.schedule_id, ScheduleWish(payload="[21]"))
    await schedules.update(TENANT, install_id, first.schedule_id, ScheduleWish(payload=""))
    await schedules.update(TENANT, install_id, second.schedule_id, ScheduleWish(payload="[12345]"))


def _age_changes(urls: Mapping[str, str], seconds: int) -> None:
    with psycopg.connect(libpq_conninfo(urls[OWNER])) as connection:
        connection.execute(
            "update extension_schedule_changes set changed_at = array(select t - make_interval(secs => %s) from unnest(changed_at) t)",
            (seconds,),
        )


async def test_changes_a_minute__of_every_kind_and_refused_ones__are_counted_for_the_whole_fleet(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    other = await Database.connect(database_urls[RUNNER], expected_role=RUNNER)
    fleet = [ScheduleService(database) for database in (runner_database, other)]
    try:
        one = await fleet[0].create(TENANT, install_id, WISH)
        await _refused(fleet[1].create(TENANT, install_id, ScheduleWish()), ScheduleCase.VALIDATION_FAILED, "endpoint", "cron")
        await _refused(fleet[0].delete(TENANT, install_id, UNKNOWN_ID), ScheduleCase.NOT_FOUND)
        done, refusals = await _outcomes(
            *(fleet[turn % 2].update(TENANT, install_id, one.schedule_id, ScheduleWish(enabled=bool(turn % 3))) for turn in range(12))
        )
        assert (done, refusals) == (7, [ScheduleCase.QUOTA_EXCEEDED] * 5)
        await _refused(fleet[0].delete(TENANT, install_id, one.schedule_id), ScheduleCase.QUOTA_EXCEEDED)
        assert len(await fleet[1].list_schedules(TENANT, install_id)) == 1, "reading is not counted"
        # Refused for their number, they count for nothing: the minute ends a minute after the tenth.
        _age_changes(database_urls, 61)
        await fleet[1].delete(TENANT, install_id, one.schedule_id)
    finally:
        await other.aclose()


async def test_changes_a_minute__are_those_of_any_sixty_seconds(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    schedules = ScheduleService(runner_database, replace(DEFAULT_LIMITS, changes_per_minute=2))
    await schedules.create(TENANT, install_id, WISH)
    _age_changes(database_urls, 40)
    await schedules.create(TENANT, install_id, WISH)
    await _refused(schedules.create(TENANT, install_id, WISH), ScheduleCase.QUOTA_EXCEEDED)
    _age_changes(database_urls, 21)
    await schedules.create(TENANT, install_id, WISH)
    await _refused(schedules.create(TENANT, install_id, WISH), ScheduleCase.QUOTA_EXCEEDED)


async def test_other_tenant_and_other_install__see_and_change_nothing(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    schedules = ScheduleService(runner_database, FREE)
    mine = (await schedules.create(TENANT, install_id, replace(WISH, name="mine"))).schedule_id
    theirs = (await install(admin_database, OTHER_TENANT, granted=GRANTED)).install_id
    await publish(admin_database, new_version(name="com.acme.other", capabilities=GRANTED, endpoints=ENDPOINTS))
    neighbour = (await install(admin_database, name="com.acme.other", granted=GRANTED)).install_id
    before = _rows(database_urls)
    for tenant, other in ((OTHER_TENANT, theirs), (TENANT, neighbour)):
        assert await schedules.list_schedules(tenant, other) == ()
        await _refused(schedules.get(tenant, other, mine), ScheduleCase.NOT_FOUND)
        await _refused(schedules.update(tenant, other, mine, ScheduleWish(enabled=False)), ScheduleCase.NOT_FOUND)
        await _refused(schedules.delete(tenant, other, mine), ScheduleCase.NOT_FOUND)
    # Even where the install's id is another's: it is not this tenant's.
    for tenant, other in ((OTHER_TENANT, install_id), (TENANT, theirs)):
        assert await schedules.list_schedules(tenant, other) == ()
        await _refused(schedules.create(tenant, other, WISH), ScheduleCase.DENIED)
        await _refused(schedules.delete(tenant, other, mine), ScheduleCase.DENIED)
        await _refused(schedules.list_endpoints(tenant, other), ScheduleCase.DENIED)
    assert _rows(database_urls) == before
    # A name is taken for its install only.
    await schedules.create(OTHER_TENANT, theirs, replace(WISH, name="mine"))
    await schedules.create(TENANT, neighbour, replace(WISH, name="mine"))


@pytest.mark.parametrize("schedule_id", ["", "x", "\0", "\ud800", "%", UNKNOWN_ID, UNKNOWN_ID.upper(), "x" * 100_000])
async def test_unknown_or_malformed_schedule__is_not_found(runner_database: Database, install_id: InstallId, schedule_id: str) -> None:
    schedules = ScheduleService(runner_database)
    await schedules.create(TENANT, install_id, WISH)
    await _refused(schedules.get(TENANT, install_id, schedule_id), ScheduleCase.NOT_FOUND)
    await _refused(schedules.update(TENANT, install_id, schedule_id, ScheduleWish(enabled=False)), ScheduleCase.NOT_FOUND)
    await _refused(schedules.delete(TENANT, install_id, schedule_id), ScheduleCase.NOT_FOUND)


async def test_unknown_malformed_or_disabled_install__is_denied(
    admin_database: Database, runner_database: Database, install_id: InstallId
) -> None:
    schedules = ScheduleService(runner_database)
    for tenant, other in (
        (TENANT, new_id()),
        (TENANT, ""),
        (TENANT, "\0"),
        (TENANT, install_id.upper()),
        ("", install_id),
        ("*", install_id),
    ):
        await _refused(schedules.create(tenant, other, WISH), ScheduleCase.DENIED)
        await _refused(schedules.list_endpoints(tenant, other), ScheduleCase.DENIED)
    await InstallService(admin_database).set_enabled(TENANT, install_id, enabled=False, actor="a")
    await _refused(schedules.create(TENANT, install_id, WISH), ScheduleCase.DENIED)
    await _refused(schedules.list_endpoints(TENANT, install_id), ScheduleCase.DENIED)


async def test_endpoints__of_the_installed_version__have_ids_that_stay(runner_database: Database, install_id: InstallId) -> None:
    schedules = ScheduleService(runner_database)
    endpoints = await schedules.list_endpoints(TENANT, install_id)
    assert [(one.method, one.path, one.handler, one.schedulable) for one in endpoints] == [
        ("POST", "/report", "report", True),
        ("GET", "/sync", "sync", True),
        ("GET", "/notes/:id", "note", False),
        ("POST", "/admin", "admin", False),
        ("POST", "/quiet", "quiet", False),
    ]
    assert len({one.endpoint_id for one in endpoints}) == len(endpoints)
    assert await ScheduleService(runner_database).list_endpoints(TENANT, install_id) == endpoints


async def _replace_version(admin: Database, install_id: InstallId, endpoints: tuple[dict[str, Any], ...]) -> None:
    service = InstallService(admin)
    await publish(admin, new_version(version="2.0.0", capabilities=GRANTED, endpoints=endpoints))
    await service.uninstall(TENANT, install_id, actor="a")
    assert (await install(admin, granted=GRANTED)).install_id == install_id


async def test_new_version_without_the_endpoint__schedule_is_kept_and_shown_and_cannot_be_enabled(
    admin_database: Database, runner_database: Database, install_id: InstallId
) -> None:
    schedules, administration = ScheduleService(runner_database), ScheduleAdministration(admin_database)
    ids = {one.endpoint_id for one in await schedules.list_endpoints(TENANT, install_id)}
    lost = await schedules.create(TENANT, install_id, WISH)
    kept = await schedules.create(TENANT, install_id, replace(WISH, endpoint="GET /sync"))
    await _replace_version(admin_database, install_id, ENDPOINTS[1:])
    assert await schedules.list_schedules(TENANT, install_id) == (lost, kept)
    assert [view.has_endpoint for view in await administration.list_schedules(TENANT, install_id)] == [False, True]
    assert not ids & {one.endpoint_id for one in await schedules.list_endpoints(TENANT, install_id)}
    # What does not make it run is possible.
    await schedules.update(TENANT, install_id, lost.schedule_id, ScheduleWish(enabled=False, cron="0 5 * * *"))
    enabling = schedules.update(TENANT, install_id, lost.schedule_id, ScheduleWish(enabled=True))
    await _refused(enabling, ScheduleCase.VALIDATION_FAILED, "endpoint")
    moved = await schedules.update(TENANT, install_id, lost.schedule_id, ScheduleWish(enabled=True, endpoint="GET /sync"))
    assert (moved.is_active, moved.endpoint_path) == (True, "/sync")


async def test_uninstall__keeps_or_purges_schedules(admin_database: Database, runner_database: Database, install_id: InstallId) -> None:
    schedules, service = ScheduleService(runner_database), InstallService(admin_database)
    one = await schedules.create(TENANT, install_id, WISH)
    await service.uninstall(TENANT, install_id, actor="a")
    await _refused(schedules.create(TENANT, install_id, WISH), ScheduleCase.DENIED)
    with pytest.raises(RefusalError) as caught:
        await ScheduleAdministration(admin_database).list_schedules(TENANT, install_id)
    assert caught.value.reason is Reason.EXTENSION_NOT_INSTALLED
    assert (await install(admin_database, granted=GRANTED)).install_id == install_id
    assert await schedules.list_schedules(TENANT, install_id) == (one,)
    await service.uninstall(TENANT, install_id, purge=True, actor="a")
    assert await schedules.list_schedules(TENANT, install_id) == ()
    await _refused(schedules.create(TENANT, install_id, WISH), ScheduleCase.DENIED)


async def test_administrator_s_stop__cannot_be_undone_by_the_extension(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    schedules, administration = ScheduleService(runner_database), ScheduleAdministration(admin_database)
    one = await schedules.create(TENANT, install_id, WISH)
    stopped = await administration.set_enabled(TENANT, install_id, one.schedule_id, enabled=False, actor="ada")
    assert (stopped.schedule.is_active, stopped.schedule.enabled, stopped.schedule.stopped_by) == (False, True, "ada")
    enabling = schedules.update(TENANT, install_id, one.schedule_id, ScheduleWish(enabled=True))
    await _refused(enabling, ScheduleCase.VALIDATION_FAILED, "enabled")
    changed = await schedules.update(TENANT, install_id, one.schedule_id, ScheduleWish(enabled=False, cron="0 5 * * *"))
    assert (changed.is_active, changed.stopped_by) == (False, "ada")
    let_go = await administration.set_enabled(TENANT, install_id, one.schedule_id, enabled=True, actor="ada")
    assert (let_go.schedule.is_active, let_go.schedule.stopped_by, let_go.schedule.revision) == (True, None, 4)
    await administration.delete(TENANT, install_id, one.schedule_id, actor="ada")
    assert _rows(database_urls) == []
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        audit = connection.execute("select tenant_id, actor, action, subject, detail from extension_audit_log where action like 'sched%'")
        assert audit.fetchall() == [
            (TENANT, "ada", f"schedule.{verb}", one.schedule_id, {"install": install_id}) for verb in ("disable", "enable", "delete")
        ]


async def test_administrators_of_another_tenant__stop_nothing(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    administration = ScheduleAdministration(admin_database)
    one = (await ScheduleService(runner_database).create(TENANT, install_id, WISH)).schedule_id
    theirs = (await install(admin_database, OTHER_TENANT, granted=GRANTED)).install_id
    before = _rows(database_urls)
    for other, reason in ((install_id, Reason.EXTENSION_NOT_INSTALLED), (theirs, Reason.NOT_FOUND), ("\0", Reason.EXTENSION_NOT_INSTALLED)):
        for attempt in (
            administration.set_enabled(OTHER_TENANT, other, one, enabled=False, actor="eve"),
            administration.set_enabled(OTHER_TENANT, other, one, enabled=True, actor="eve"),
            administration.delete(OTHER_TENANT, other, one, actor="eve"),
        ):
            with pytest.raises(RefusalError) as caught:
                await attempt
            assert caught.value.reason is reason
    assert _rows(database_urls) == before


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        # A daemon that was taken over cannot undo an administrator's stop, nor an administrator change what will be called.
        (RUNNER, "update extension_schedule set stopped_by = null"),
        (RUNNER, "insert into extension_schedule (tenant_id, id, stopped_by) values ('tenant-a', gen_random_uuid(), 'x')"),
        (RUNNER, "delete from extension_schedule_changes"),
        (ADMIN, "update extension_schedule set endpoint_path = '/x'"),
        (ADMIN, "update extension_schedule set payload = '[]'"),
        (ADMIN, "insert into extension_schedule (tenant_id, id) values ('tenant-a', gen_random_uuid())"),
    ],
)
async def test_role__may_not_do_what_is_another_s(database_urls: Mapping[str, str], role: str, statement: str) -> None:
    with psycopg.connect(libpq_conninfo(database_urls[role])) as connection:
        connection.execute("select set_config('app.tenant_id', 'tenant-a', true)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


@contextmanager
def _dying_after(database: Database, cluster: EmbeddedPostgres, words: str) -> Iterator[list[str]]:
    """End the connection right after it executed a statement that begins so."""
    ended: list[str] = []

    def end(connection: Any, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.strip().startswith(words):
            pid = connection.connection.driver_connection.info.backend_pid
            with psycopg.connect(libpq_conninfo(cluster.superuser_url()), autocommit=True) as superuser:
                superuser.execute("select pg_terminate_backend(%s, 5000)", (pid,))
            ended.append(statement)

    event.listen(database._engine.sync_engine, "after_cursor_execute", end)
    try:
        yield ended
    finally:
        event.remove(database._engine.sync_engine, "after_cursor_execute", end)


Attempt = Callable[[ScheduleService, InstallId, str], Awaitable[object]]


@pytest.mark.parametrize(
    ("words", "attempt"),
    [
        ("insert into extension_schedule_changes", lambda service, install_id, _: service.create(TENANT, install_id, WISH)),
        ("insert into extension_schedule (", lambda service, install_id, _: service.create(TENANT, install_id, WISH)),
        ("update extension_schedule", lambda service, install_id, one: service.update(TENANT, install_id, one, ScheduleWish(name="x"))),
        ("delete from extension_schedule", lambda service, install_id, one: service.delete(TENANT, install_id, one)),
    ],
)
async def test_database_dies_in_a_change__nothing_of_it_is_there(
    runner_database: Database,
    postgres_cluster: EmbeddedPostgres,
    database_urls: Mapping[str, str],
    install_id: InstallId,
    words: str,
    attempt: Attempt,
) -> None:
    schedules = ScheduleService(runner_database)
    one = await schedules.create(TENANT, install_id, WISH)
    before = _rows(database_urls)
    with _dying_after(runner_database, postgres_cluster, words) as ended:
        await _refused(attempt(schedules, install_id, one.schedule_id), ScheduleCase.INTERNAL)
    assert len(ended) == 1
    assert _rows(database_urls) == before
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        assert connection.execute("select cardinality(changed_at) from extension_schedule_changes").fetchone() == (1,)
    await attempt(schedules, install_id, one.schedule_id)
    assert _rows(database_urls) != before


async def test_database_away__is_internal(tmp_path: Path) -> None:
    absent = Database(_build_engine(f"postgresql+psycopg://ext_runner@/none?host={tmp_path}", 1))
    schedules = ScheduleService(absent)
    try:
        for attempt in (
            schedules.list_schedules(TENANT, UNKNOWN_ID),
            schedules.get(TENANT, UNKNOWN_ID, UNKNOWN_ID),
            schedules.list_endpoints(TENANT, UNKNOWN_ID),
            schedules.create(TENANT, UNKNOWN_ID, WISH),
            schedules.update(TENANT, UNKNOWN_ID, UNKNOWN_ID, WISH),
            schedules.delete(TENANT, UNKNOWN_ID, UNKNOWN_ID),
        ):
            await _refused(attempt, ScheduleCase.INTERNAL)
    finally:
        await absent.aclose()


async def test_install_locked_by_somebody__is_internal_within_the_deadline(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    schedules = ScheduleService(runner_database)
    await schedules.create(TENANT, install_id, WISH)
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute("select from extension_schedule_changes for update")
        async with asyncio.timeout(10):
            await _refused(schedules.create(TENANT, install_id, WISH), ScheduleCase.INTERNAL)
    assert len(await schedules.list_schedules(TENANT, install_id)) == 1


def test_limits__defaults__are_those_of_the_contract() -> None:
    expected = ScheduleLimits(schedules=50, changes_per_minute=10, payload_bytes=2 * 1024 * 1024)
    assert expected == DEFAULT_LIMITS
