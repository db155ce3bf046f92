from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from registry import migrations
from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import ExecutionId, TenantId
from registry.domain.limits import MIB
from registry.domain.records import ExecutionRecord
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import ADMIN, OWNER, RUNNER, libpq_conninfo
from registry.repositories.executions import ExecutionRepository
from registry.services import executions
from registry.services.executions import ExecutionQuery, ExecutionRecorder
from registry.services.pages import encode_cursor
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, UNKNOWN_ID, execution, install, publish


async def _record(runner: Database, *records: ExecutionRecord) -> None:
    recorder = ExecutionRecorder(runner)
    await recorder.start()
    for record in records:
        recorder.record(record)
    assert await recorder.aclose() == 0


def _usage(urls: Mapping[str, str]) -> list[tuple[object, ...]]:
    with psycopg.connect(libpq_conninfo(urls[OWNER])) as connection:
        return connection.execute(
            "select tenant_id, window_start, cpu_ms, mem_mb_ms, invocations, egress_bytes from extension_quota_usage order by 1, 2"
        ).fetchall()


async def test_recorder__everything_of_a_record__comes_back(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database)
    record = execution(
        await install(admin_database),
        outcome="trapped",
        reason="OUT_OF_BOUNDS",
        http_status=502,
        peak_memory_bytes=None,
        user_id=None,
        denials=({"capability": "http.fetch", "why": "not granted"},),
        log=({"level": "info", "message": "héllo", "offset_us": "12"},),
    )
    await _record(runner_database, record)
    assert await ExecutionQuery(admin_database).get_execution(TENANT, record.execution_id) == record


async def test_recorder__counts_usage_by_the_hour_and_each_execution_once(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str]
) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    moment = datetime.now(UTC).replace(minute=59, second=59, microsecond=999_999)
    first, second = execution(view, started_at=moment), execution(view, started_at=moment + timedelta(microseconds=1))
    for _ in range(2):  # as after a lost answer to COMMIT
        await _record(runner_database, first, second, first)
    hour = moment.replace(minute=0, second=0, microsecond=0)
    assert _usage(database_urls) == [(TENANT, hour, 5, 24, 1, 30), (TENANT, hour + timedelta(hours=1), 5, 24, 1, 30)]
    assert len((await ExecutionQuery(admin_database).list_executions(TENANT))[0]) == 2


async def test_recorder__two_daemons_replay_the_same_rows__each_counts_once(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str]
) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    records = [execution(view, started_at=datetime(2026, 11, 20, tzinfo=UTC)) for _ in range(50)]
    await asyncio.gather(*(_record(runner_database, *records[start:], *records[:start]) for start in (0, 10, 20)))
    assert [row[4] for row in _usage(database_urls)] == [50]


async def test_recorder__tenants__are_kept_apart(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database)
    mine, theirs = execution(await install(admin_database)), execution(await install(admin_database, OTHER_TENANT))
    await _record(runner_database, mine, theirs)
    query = ExecutionQuery(admin_database)
    for tenant, own, other in ((TENANT, mine, theirs), (OTHER_TENANT, theirs, mine)):
        page, _ = await query.list_executions(tenant)
        assert [record.execution_id for record in page] == [own.execution_id]
        with pytest.raises(RefusalError) as caught:
            await query.get_execution(tenant, other.execution_id)
        assert caught.value.reason is Reason.NOT_FOUND


async def test_recorder__what_guests_log__cannot_cost_the_row(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    nasty = "a\0b\ud800c\U0001f600'\"\\u0000; drop table extension_execution_log; --\u202e"
    record = execution(view, request_id=nasty, method=nasty, endpoint=nasty, user_id=nasty, log=({"level": nasty, "message": nasty},))
    await _record(runner_database, record)
    stored = await ExecutionQuery(admin_database).get_execution(TENANT, record.execution_id)
    assert stored.log[0]["message"] == "a\ufffdb?c\U0001f600'\"\\u0000; drop table extension_execution_log; --\u202e"


async def test_recorder__row_that_can_never_be_stored__costs_only_itself(
    admin_database: Database, runner_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    good = [execution(view) for _ in range(3)]
    bad = [
        execution(view, outcome="no such outcome"),
        execution(view, execution_id=ExecutionId("no id")),
        execution(view, http_status=2**40),
        replace(execution(view), tenant_id=TenantId("*")),
    ]
    recorder = ExecutionRecorder(runner_database)
    await recorder.start()
    for record in (good[0], bad[0], good[1], *bad[1:], good[2]):
        recorder.record(record)
    with caplog.at_level(logging.CRITICAL):
        assert await recorder.aclose() == 0
    assert recorder.rejected == len(bad)
    page, _ = await ExecutionQuery(admin_database).list_executions(TENANT)
    assert {record.execution_id for record in page} == {record.execution_id for record in good}


async def test_recorder__full__refuses_and_has_room_again_after_writing(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    recorder = ExecutionRecorder(runner_database, max_rows=3)
    for _ in range(3):
        recorder.check_room()
        recorder.record(execution(view))
    for attempt in (recorder.check_room, lambda: recorder.record(execution(view))):
        with pytest.raises(RefusalError) as caught:
            attempt()
        assert caught.value.reason is Reason.OVERLOADED
    assert recorder.depth == 3
    await recorder.start()
    async with asyncio.timeout(10):
        while recorder.depth:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
    recorder.record(execution(view))
    assert await recorder.aclose() == 0
    assert len((await ExecutionQuery(admin_database).list_executions(TENANT))[0]) == 4


async def test_recorder__log_text_behind__goes_first_and_rows_stay(
    admin_database: Database, runner_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    monkeypatch.setattr(executions, "_LOG_BUDGET_BYTES", 2_000)
    line = ({"level": "info", "message": "x" * 400, "offset_us": "0"},)
    records = [execution(view, log=line) for _ in range(5)]
    await _record(runner_database, *records)
    stored = {record.execution_id: record.log for record in (await ExecutionQuery(admin_database).list_executions(TENANT))[0]}
    kept = [stored[record.execution_id] == line for record in records]
    assert kept == [True, True, False, False, False]
    assert "dropped" in stored[records[-1].execution_id][0]["message"]


async def test_recorder__empty_lines_and_denials_behind__count_as_the_memory_they_take(
    admin_database: Database, runner_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    monkeypatch.setattr(executions, "_LOG_BUDGET_BYTES", MIB)
    recorder = ExecutionRecorder(runner_database)
    tracemalloc.start()
    try:
        for _ in range(100):
            log = tuple({"level": "info", "stream": "log", "message": "", "offset_us": str(1_000 + number)} for number in range(256))
            denials = tuple({"capability": "cap:http.fetch", "why": "w", "change": f"the host {number}.example"} for number in range(32))
            recorder.record(execution(view, log=log, denials=denials))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A hundred such records would take eight times as much.
    assert taken < MIB
    assert recorder.depth == 100
    assert (len(recorder._waiting[0].log), len(recorder._waiting[0].denials)) == (256, 32)
    assert "dropped" in recorder._waiting[-1].log[0]["message"]
    assert len(recorder._waiting[-1].denials) == 4


async def test_recorder__database_stopped_and_started__loses_and_repeats_nothing(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as server:
        migrations.upgrade(server.url(OWNER))
        admin = await Database.connect(server.url(ADMIN), expected_role=ADMIN)
        runner = await Database.connect(server.url(RUNNER), expected_role=RUNNER)
        await publish(admin)
        view = await install(admin)
        recorder = ExecutionRecorder(runner, flush_interval=0.001)
        await recorder.start()
        records: list[ExecutionRecord] = []

        async def add(number: int) -> None:
            for _ in range(number):
                records.append(execution(view))
                recorder.record(records[-1])
                await asyncio.sleep(0.001)

        await add(50)
        stopping = asyncio.create_task(add(50))
        server.stop()
        await stopping
        assert recorder.depth > 0
        await asyncio.sleep(0.3)
        server.start()
        await add(50)
        assert await recorder.aclose(timeout_seconds=20) == 0
        with psycopg.connect(libpq_conninfo(server.url(OWNER))) as connection:
            stored = connection.execute("select id::text from extension_execution_log").fetchall()
            assert sorted(row[0] for row in stored) == sorted(record.execution_id for record in records)
            assert connection.execute("select sum(invocations) from extension_quota_usage").fetchone() == (150,)
        await runner.aclose()
        await admin.aclose()


async def test_recorder__closed_while_the_database_is_away__says_how_many_are_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as server:
        migrations.upgrade(server.url(OWNER))
        admin = await Database.connect(server.url(ADMIN), expected_role=ADMIN)
        runner = await Database.connect(server.url(RUNNER), expected_role=RUNNER)
        await publish(admin)
        view = await install(admin)
        recorder = ExecutionRecorder(runner)
        await recorder.start()
        server.stop()
        recorder.record(execution(view))
        assert await recorder.aclose(timeout_seconds=0.5) == 1
        assert "rows lost" in caplog.text
        await runner.aclose()
        await admin.aclose()


async def test_add_batch__record_of_another_tenant__is_written_under_the_repositorys(
    admin_database: Database, runner_database: Database
) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    async with runner_database.tenant_session(OTHER_TENANT) as session:
        assert await ExecutionRepository(session, OTHER_TENANT).add_batch([execution(view)]) == 1
    assert (await ExecutionQuery(admin_database).list_executions(TENANT))[0] == ()


async def test_list__pages__newest_first_also_within_one_moment(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    moment = datetime.now(UTC)
    records = [execution(view, started_at=moment - timedelta(seconds=number // 3)) for number in range(10)]
    await _record(runner_database, *records)
    expected = [record.execution_id for record in sorted(records, key=lambda one: (one.started_at, one.execution_id), reverse=True)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = await ExecutionQuery(admin_database).list_executions(TENANT, limit=3, cursor=cursor)
        seen += [record.execution_id for record in page]
        if cursor is None:
            break
    assert seen == expected


@pytest.mark.parametrize("execution_id", ["", "x", "\0", UNKNOWN_ID])
async def test_get__no_such_execution__is_not_found(admin_database: Database, execution_id: str) -> None:
    with pytest.raises(RefusalError) as caught:
        await ExecutionQuery(admin_database).get_execution(TENANT, execution_id)
    assert caught.value.reason is Reason.NOT_FOUND


@pytest.mark.parametrize(
    ("limit", "cursor"), [(0, None), (101, None), (1, "x"), (1, "WyJ4IiwieSJd"), (1, encode_cursor("2026-01-01T00:00:00+00:00", "x"))]
)
async def test_list__malformed__is_refused(admin_database: Database, limit: int, cursor: str | None) -> None:
    with pytest.raises(RefusalError) as caught:
        await ExecutionQuery(admin_database).list_executions(TENANT, limit=limit, cursor=cursor)
    assert caught.value.reason is Reason.INVALID_REQUEST
