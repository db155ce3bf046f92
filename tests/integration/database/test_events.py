from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from psycopg.rows import dict_row
from typer.testing import CliRunner

from registry.cli.__main__ import app
from registry.database import Database, _build_engine
from registry.domain.errors import RefusalError
from registry.domain.events import MAX_DATA_BYTES, MAX_DEPTH, EventLimits
from registry.domain.ids import InstallId, new_id
from registry.migrations.roles import MAINTENANCE, OWNER, RUNNER, libpq_conninfo
from registry.repositories.installs import InstallView
from registry.services.events import DepthExceededError, EventCase, EventContent, EventOutbox, EventRefusalError, Publisher
from registry.services.installing import InstallService
from registry.services.retention import RetentionService
from tests.fakes.counting_database import CountingDatabase
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, UNKNOWN_ID, install, new_version, publish

CONTENT = EventContent(topic="note.added", content_type="application/json", data=b'{"id": 1}', key="note-1")


def publisher_of(view: InstallView, **changes: Any) -> Publisher:
    facts: dict[str, Any] = {
        "tenant_id": view.tenant_id,
        "install_id": view.install_id,
        "extension_id": view.extension_id,
        "extension_name": view.extension_name,
        "request_id": "r1",
        "follows_event": False,
        "event_id": None,
    }
    return Publisher(**facts | changes)


@pytest.fixture
async def publisher(admin_database: Database) -> Publisher:
    await publish(admin_database)
    return publisher_of(await install(admin_database))


@pytest.fixture
def outbox(runner_database: Database) -> EventOutbox:
    return EventOutbox(runner_database)


def stored(urls: Mapping[str, str]) -> list[dict[str, Any]]:
    with psycopg.connect(libpq_conninfo(urls[OWNER]), row_factory=dict_row) as connection:
        return connection.execute("select * from extension_event order by tenant_id, install_id, sequence").fetchall()


async def refusal(outbox: EventOutbox, publisher: Publisher, content: EventContent = CONTENT) -> EventCase:
    with pytest.raises(EventRefusalError) as refused:
        await outbox.publish(publisher, content)
    return refused.value.case


async def test_event__is_stored_as_the_runner_says(outbox: EventOutbox, publisher: Publisher, database_urls: Mapping[str, str]) -> None:
    event_id = await outbox.publish(publisher, CONTENT)
    (row,) = stored(database_urls)
    assert str(row.pop("id")) == event_id
    assert event_id[14] == "7"
    assert row.pop("published_at").tzinfo is not None
    assert {name: str(value) if name.endswith("_id") and value else value for name, value in row.items()} == {
        "tenant_id": TENANT,
        "install_id": publisher.install_id,
        "registry_id": publisher.extension_id,
        "sequence": 1,
        "source": f"/extensions/com.acme.notes/installs/{publisher.install_id}",
        "topic": "ext.com.acme.notes.note.added",
        "ordering_key": "note-1",
        "content_type": "application/json",
        "data": b'{"id": 1}',
        "depth": 1,
        "cause_id": None,
        "request_id": "r1",
        "dispatched_at": None,
    }


@pytest.mark.parametrize(
    ("changes", "case"),
    [
        ({"topic": "ext.invoice.paid"}, EventCase.INVALID),
        ({"topic": "Note"}, EventCase.INVALID),
        ({"content_type": "json"}, EventCase.INVALID),
        ({"key": ""}, EventCase.INVALID),
        ({"data": bytes(MAX_DATA_BYTES + 1)}, EventCase.TOO_LARGE),
    ],
)
async def test_event__that_breaks_a_rule__is_not_stored(
    outbox: EventOutbox, publisher: Publisher, database_urls: Mapping[str, str], changes: dict[str, Any], case: EventCase
) -> None:
    assert await refusal(outbox, publisher, replace(CONTENT, **changes)) is case
    assert stored(database_urls) == []
    await outbox.publish(publisher, replace(CONTENT, data=bytes(MAX_DATA_BYTES), key=None))


async def test_loop_of_two_extensions__ends_at_the_depth(
    outbox: EventOutbox, publisher: Publisher, admin_database: Database, database_urls: Mapping[str, str]
) -> None:
    await publish(admin_database, new_version(name="com.acme.tags"))
    other = publisher_of(await install(admin_database, name="com.acme.tags", granted=()))
    event_id = await outbox.publish(publisher, CONTENT)
    for turn in range(MAX_DEPTH - 1):
        event_id = await outbox.publish(replace((other, publisher)[turn % 2], follows_event=True, event_id=event_id), CONTENT)
    for last in (publisher, other):
        with pytest.raises(DepthExceededError):
            await outbox.publish(replace(last, follows_event=True, event_id=event_id), CONTENT)
    rows = sorted(stored(database_urls), key=lambda row: row["depth"])
    assert [row["depth"] for row in rows] == [1, 2, 3, 4]
    assert [row["cause_id"] for row in rows[1:]] == [row["id"] for row in rows[:-1]]


async def test_depth__cause_not_named_unknown_or_of_another_tenant__counts_as_the_deepest(
    outbox: EventOutbox, publisher: Publisher, admin_database: Database, database_urls: Mapping[str, str]
) -> None:
    theirs = await outbox.publish(publisher_of(await install(admin_database, OTHER_TENANT)), CONTENT)
    for cause in (None, new_id(), theirs):
        with pytest.raises(DepthExceededError) as refused:
            await outbox.publish(replace(publisher, follows_event=True, event_id=cause), CONTENT)
        assert refused.value.case is EventCase.DENIED
    assert [row["tenant_id"] for row in stored(database_urls)] == [OTHER_TENANT]


async def test_topic__of_an_extension_with_a_longer_name__is_not_forged(
    outbox: EventOutbox, admin_database: Database, database_urls: Mapping[str, str]
) -> None:
    await publish(admin_database, new_version(name="com.acme"))
    short = publisher_of(await install(admin_database, name="com.acme", granted=()))
    forged = replace(CONTENT, topic="notes.note.added")
    await outbox.publish(short, forged)
    await publish(admin_database)
    long = publisher_of(await install(admin_database))
    assert await refusal(outbox, short, forged) is EventCase.DENIED
    await outbox.publish(long, CONTENT)
    await outbox.publish(short, replace(CONTENT, topic="notes"))
    owners = [(row["topic"], str(row["registry_id"])) for row in stored(database_urls) if row["install_id"] != short.install_id]
    assert ("ext.com.acme.notes.note.added", long.extension_id) in owners


async def test_order__of_an_install__is_one_sequence_for_all_daemons(
    outbox: EventOutbox, publisher: Publisher, runner_database: Database, database_urls: Mapping[str, str]
) -> None:
    other = EventOutbox(runner_database)
    ids = await asyncio.gather(*((outbox, other)[number % 2].publish(publisher, CONTENT) for number in range(24)))
    rows = stored(database_urls)
    assert [row["sequence"] for row in rows] == list(range(1, 25))
    assert {str(row["id"]) for row in rows} == set(ids)
    assert len(set(ids)) == 24


async def test_crowd_of_one_install__holds_one_connection(
    publisher: Publisher, runner_database: Database, admin_database: Database
) -> None:
    theirs = publisher_of(await install(admin_database, OTHER_TENANT))
    counting = CountingDatabase(runner_database)
    outbox = EventOutbox(cast("Database", counting))
    crowd = [asyncio.ensure_future(outbox.publish(publisher, CONTENT)) for _ in range(12)]
    await outbox.publish(theirs, CONTENT)
    assert len(set(await asyncio.gather(*crowd))) == 12
    assert counting.most == 2, "one for each install"


@pytest.mark.parametrize("limits", [EventLimits(per_day=5), EventLimits(bytes_per_day=5 * len(CONTENT.data) + 3)])
async def test_quota_of_a_day__published_at_once__is_kept_exactly(
    runner_database: Database, publisher: Publisher, database_urls: Mapping[str, str], limits: EventLimits
) -> None:
    outbox = EventOutbox(runner_database, limits)
    ended = await asyncio.gather(*(outbox.publish(publisher, CONTENT) for _ in range(20)), return_exceptions=True)
    refused = [one.case for one in ended if isinstance(one, EventRefusalError)]
    assert refused == [EventCase.QUOTA_EXCEEDED] * 15
    assert len(stored(database_urls)) == 5


async def test_quota_of_a_minute__ends_and_begins_again(
    runner_database: Database, publisher: Publisher, database_urls: Mapping[str, str]
) -> None:
    outbox = EventOutbox(runner_database, EventLimits(per_minute=3))
    # A minute may end meanwhile, once.
    ended = [await _case(outbox, publisher) for _ in range(7)]
    assert EventCase.QUOTA_EXCEEDED in ended
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute("update extension_event_usage set minute = minute - interval '1 minute'")
    assert await _case(outbox, publisher) is None


async def _case(outbox: EventOutbox, publisher: Publisher) -> EventCase | None:
    try:
        await outbox.publish(publisher, CONTENT)
    except EventRefusalError as refused:
        return refused.case
    return None


async def test_install__gone_or_another_tenants__publishes_nothing(
    outbox: EventOutbox, publisher: Publisher, admin_database: Database, database_urls: Mapping[str, str]
) -> None:
    assert await refusal(outbox, replace(publisher, install_id=InstallId(UNKNOWN_ID))) is EventCase.DENIED
    assert await refusal(outbox, replace(publisher, tenant_id=OTHER_TENANT)) is EventCase.DENIED
    await outbox.publish(publisher, CONTENT)
    await InstallService(admin_database).uninstall(TENANT, publisher.install_id, purge=True, actor="ada")
    assert stored(database_urls) == []
    assert await refusal(outbox, publisher) is EventCase.DENIED


async def test_sweep__takes_the_old_of_every_tenant_and_nothing_else(
    outbox: EventOutbox, publisher: Publisher, admin_database: Database, database_urls: Mapping[str, str]
) -> None:
    theirs = publisher_of(await install(admin_database, OTHER_TENANT))
    for one in (publisher, theirs):
        for _ in range(3):
            await outbox.publish(one, CONTENT)
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute("update extension_event set published_at = now() - interval '7 days 1 minute' where sequence < 3")
    maintenance = await Database.connect(database_urls[MAINTENANCE], expected_role=MAINTENANCE)
    try:
        retention = RetentionService(maintenance)
        assert await retention.sweep_events(days=8) == 0
        assert await retention.sweep_events(batch=3) == 4
        assert await retention.sweep_events() == 0
        with pytest.raises(RefusalError):
            await retention.sweep_events(days=0)
    finally:
        await maintenance.aclose()
    assert [(row["tenant_id"], row["sequence"]) for row in stored(database_urls)] == [(TENANT, 3), (OTHER_TENANT, 3)]
    # The order goes on where it was.
    await outbox.publish(publisher, CONTENT)
    assert stored(database_urls)[1]["sequence"] == 4


def test_sweep__as_a_verb__needs_the_role_for_it(database_urls: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "url").write_text(database_urls[MAINTENANCE])
    swept = CliRunner().invoke(app, ["db", "sweep", "--url-file", str(tmp_path / "url"), "--json"])
    assert (swept.exit_code, json.loads(swept.output)) == (0, {"records": 0, "events": 0})
    (tmp_path / "url").write_text(database_urls[OWNER])
    refused = CliRunner().invoke(app, ["db", "sweep", "--url-file", str(tmp_path / "url")])
    assert refused.exit_code == 2
    assert "ext_maintenance" in refused.output


async def test_database_away__is_internal(publisher: Publisher, tmp_path: Path) -> None:
    absent = Database(_build_engine(f"postgresql+psycopg://ext_runner@/none?host={tmp_path}", 1))
    try:
        assert await refusal(EventOutbox(absent), publisher) is EventCase.INTERNAL
    finally:
        await absent.aclose()


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        (RUNNER, "select data from extension_event"),
        (RUNNER, "update extension_event set depth = 1"),
        (RUNNER, "delete from extension_event"),
        (RUNNER, "delete from extension_measurement"),
        ("ext_admin", "select data from extension_event"),
        ("ext_admin", "insert into extension_event_usage (tenant_id, install_id) values ('a', gen_random_uuid())"),
        ("ext_admin", "update extension_measurement set value = 0"),
        ("ext_gateway", "select id from extension_event"),
        (MAINTENANCE, "select data from extension_event"),
    ],
)
def test_role__beyond_its_task__is_refused(module_database_urls: Mapping[str, str], role: str, statement: str) -> None:
    with psycopg.connect(libpq_conninfo(module_database_urls[role])) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())
