"""A purge and a write of the same install never wait for each other crosswise: whoever writes has locked what it refers to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest
from psycopg import sql

from registry.database import Database
from registry.migrations.roles import OWNER, libpq_conninfo
from registry.services.events import EventCase, EventContent, EventOutbox, EventRefusalError, Publisher
from registry.services.installing import InstallService
from tests.fakes.registry_rows import TENANT, install, publish

LOCKS_AND_WRITES = {
    "ext_storage_usage": """
        insert into ext_storage_record (tenant_id, install_id, namespace, key, revision, value, value_size_bytes, metadata_size_bytes)
        values (%(tenant)s, %(install)s, 'n', 'k', 1, '', 0, 0)""",
    "extension_event_usage": """
        insert into extension_event (tenant_id, id, install_id, registry_id, sequence, source, topic, content_type, data, depth, request_id)
        values (%(tenant)s, gen_random_uuid(), %(install)s, %(extension)s, 1, 's', 't', 'a/b', '', 1, 'r')""",
    "extension_schedule_changes": """
        insert into extension_schedule (tenant_id, id, install_id, endpoint_method, endpoint_path, cron, timezone, enabled)
        values (%(tenant)s, gen_random_uuid(), %(install)s, 'GET', '/', '0 0 * * *', 'UTC', true)""",
}
"""The row that a write locks first → what it then writes."""
_MORE = {"extension_schedule_changes": (", changed_at", ", '{{}}'")}
_WAITING = "select count(*) from pg_locks where not granted"


@pytest.mark.parametrize("locked", LOCKS_AND_WRITES)
async def test_purge__between_a_writes_lock_and_its_row__waits_and_takes_both(
    admin_database: Database, database_urls: Mapping[str, str], locked: str
) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    names = {"tenant": TENANT, "install": view.install_id, "extension": view.extension_id}
    column, value = _MORE.get(locked, ("", ""))
    table = sql.Identifier(locked)
    make = sql.SQL("insert into {} (tenant_id, install_id" + column + ") values (%(tenant)s, %(install)s" + value + ")").format(table)
    with _owner(database_urls) as writer, _owner(database_urls) as watcher:
        writer.execute(make, names)
        writer.commit()
        writer.execute(sql.SQL("select from {} for update").format(table))
        watcher.autocommit = True
        purge = asyncio.create_task(asyncio.to_thread(_purge, database_urls, view.install_id))
        async with asyncio.timeout(20):
            while watcher.execute(_WAITING).fetchone() == (0,):
                assert not purge.done()
                await asyncio.sleep(0.01)
        writer.execute(LOCKS_AND_WRITES[locked].encode(), names)
        writer.commit()
        await purge
        assert writer.execute(sql.SQL("select from {}").format(table)).fetchall() == []


def _owner(urls: Mapping[str, str]) -> psycopg.Connection[Any]:
    return psycopg.connect(libpq_conninfo(urls[OWNER]))


def _purge(urls: Mapping[str, str], install_id: str) -> None:
    """Delete the install as the service does, without its deadline."""
    with _owner(urls) as connection:
        connection.execute("delete from tenant_extension_install where id = %s", (install_id,))


async def test_purge__while_an_extension_never_stops_publishing__is_not_kept_waiting(
    admin_database: Database, runner_database: Database
) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    publisher = Publisher(
        tenant_id=view.tenant_id,
        install_id=view.install_id,
        extension_id=view.extension_id,
        extension_name=view.extension_name,
        request_id="r",
        follows_event=False,
        event_id=None,
    )

    async def flood(daemon: EventOutbox) -> EventCase:
        while True:
            try:
                await daemon.publish(publisher, EventContent(topic="a", content_type="a/b", data=b"x"))
            except EventRefusalError as refused:
                if refused.case is not EventCase.QUOTA_EXCEEDED:
                    return refused.case

    floods = [asyncio.create_task(flood(EventOutbox(runner_database))) for _ in range(4)]
    await InstallService(admin_database).uninstall(TENANT, view.install_id, purge=True, actor="a")
    assert await asyncio.gather(*floods) == [EventCase.DENIED] * 4
