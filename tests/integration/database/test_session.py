from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text

from registry.database import Database, UnsafeDatabaseRoleError
from registry.domain.errors import Reason, RefusalError
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import ADMIN, APPLICATION_ROLES, GATEWAY, OWNER, RUNNER, libpq_conninfo

_TENANT = text("select current_setting('app.tenant_id', true)")


async def _tenant_of_next_user(database: Database) -> str | None:
    """Ask a pooled connection, past the session factory, whose it is."""
    async with database._engine.connect() as connection:
        tenant: str | None = (await connection.execute(_TENANT)).scalar_one()
        return tenant


async def _database(url: str, role: str = RUNNER) -> Database:
    return await Database.connect(url, expected_role=role, pool_size=1)


@pytest.mark.parametrize("role", APPLICATION_ROLES)
async def test_connect__each_application_role__is_accepted(database_urls: Mapping[str, str], role: str) -> None:
    database = await _database(database_urls[role], role)
    await database.ping()
    await database.aclose()


async def test_connect__superuser__is_refused(postgres_cluster: EmbeddedPostgres) -> None:
    with pytest.raises(UnsafeDatabaseRoleError, match=r"ignores row-level security.*ext_runner"):
        await _database(postgres_cluster.superuser_url())


async def test_connect__owner_of_tables__is_refused(database_urls: Mapping[str, str]) -> None:
    with pytest.raises(UnsafeDatabaseRoleError, match="owns tables"):
        await _database(database_urls[OWNER], OWNER)


async def test_connect__another_role_than_expected__is_refused(database_urls: Mapping[str, str]) -> None:
    with pytest.raises(UnsafeDatabaseRoleError, match="must be 'ext_runner'"):
        await _database(database_urls[ADMIN], RUNNER)


@pytest.mark.parametrize(
    ("attribute", "match"),
    [
        ("bypassrls", "BYPASSRLS"),
        ("superuser", "superuser"),
        ("createrole", "may create roles"),
        ("createdb", "may create roles"),
        ("replication", "may create roles"),
    ],
)
async def test_connect__dangerous_attribute__is_refused(
    postgres_cluster: EmbeddedPostgres, database_urls: Mapping[str, str], attribute: str, match: str
) -> None:
    with _superuser(postgres_cluster) as superuser:
        superuser.execute(sql.SQL("alter role ext_gateway {}").format(sql.SQL(attribute)))
        try:
            with pytest.raises(UnsafeDatabaseRoleError, match=match):
                await _database(database_urls[GATEWAY], GATEWAY)
        finally:
            superuser.execute(sql.SQL("alter role ext_gateway no{}").format(sql.SQL(attribute)))


@pytest.mark.parametrize(("other", "match"), [("ext_owner", "owns tables"), ("ext_superuser", "ignores row-level security")])
async def test_connect__member_of_a_dangerous_role__is_refused(
    postgres_cluster: EmbeddedPostgres, database_urls: Mapping[str, str], other: str, match: str
) -> None:
    with _superuser(postgres_cluster) as superuser:
        superuser.execute(sql.SQL("grant {} to ext_gateway").format(sql.Identifier(other)))
        try:
            with pytest.raises(UnsafeDatabaseRoleError, match=match):
                await _database(database_urls[GATEWAY], GATEWAY)
        finally:
            superuser.execute(sql.SQL("revoke {} from ext_gateway").format(sql.Identifier(other)))


def _superuser(cluster: EmbeddedPostgres) -> psycopg.Connection:
    return psycopg.connect(libpq_conninfo(cluster.superuser_url()), autocommit=True)


@pytest.mark.parametrize("url", ["not a url with pa55word", "sqlite:///pa55word.db", "postgresql+asyncpg://u:pa55word@h/d"])
async def test_connect__other_database__is_refused_without_repeating_the_url(url: str) -> None:
    with pytest.raises(UnsafeDatabaseRoleError) as caught:
        await _database(url)
    assert "pa55word" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_connect__nobody_there__is_unavailable_within_a_second(tmp_path: Path) -> None:
    with pytest.raises(RefusalError) as caught:
        await _database(f"postgresql+psycopg://ext_runner:pa55word@/extrunner?host={tmp_path}")
    assert caught.value.reason is Reason.REGISTRY_UNAVAILABLE
    assert "pa55word" not in str(caught.value)


async def test_connect__wrong_password__is_unavailable_without_repeating_it(database_urls: Mapping[str, str]) -> None:
    url = database_urls[RUNNER].replace("ext_runner:", "ext_runner:pa55word")
    with pytest.raises(RefusalError) as caught:
        await _database(url)
    assert caught.value.reason is Reason.REGISTRY_UNAVAILABLE


@pytest.mark.parametrize("tenant", ["", "*", "a b", "a\0", "é", "a" * 129, "-a", "a'; select 1 --"])
async def test_tenant_session__malformed_tenant__is_refused(runner_database: Database, tenant: str) -> None:
    with pytest.raises(RefusalError) as caught:
        async with runner_database.tenant_session(tenant):
            pytest.fail("must not open")
    assert caught.value.reason is Reason.INVALID_REQUEST


async def test_tenant_session__sets_the_tenant__and_the_next_user_has_none(database_urls: Mapping[str, str]) -> None:
    database = await _database(database_urls[RUNNER])
    async with database.tenant_session("tenant-a") as session:
        assert (await session.execute(_TENANT)).scalar_one() == "tenant-a"
        backend = (await session.execute(text("select pg_backend_pid()"))).scalar_one()
    async with database.session() as session:
        assert (await session.execute(_TENANT)).scalar_one() == ""
        assert (await session.execute(text("select pg_backend_pid()"))).scalar_one() == backend
    await database.aclose()


async def test_pool__after_commit_rollback_and_exception__has_no_tenant(database_urls: Mapping[str, str]) -> None:
    database = await _database(database_urls[RUNNER])
    async with database.tenant_session("tenant-a"):
        pass
    assert not await _tenant_of_next_user(database)
    with pytest.raises(ZeroDivisionError):
        async with database.tenant_session("tenant-a"):
            raise ZeroDivisionError
    assert not await _tenant_of_next_user(database)
    with pytest.raises(RefusalError):
        async with database.tenant_session("tenant-a") as session:
            await session.execute(text("select 1 / 0"))
    assert not await _tenant_of_next_user(database)
    await database.aclose()


async def test_pool__repository_sets_the_whole_session__next_user_has_nothing_of_it(database_urls: Mapping[str, str]) -> None:
    """The mistake that T18 names: `set_config(…, false)` somewhere."""
    database = await _database(database_urls[RUNNER])
    async with database.tenant_session("tenant-a") as session:
        await session.execute(text("select set_config('app.tenant_id', 'tenant-b', false), set_config('search_path', 'evil', false)"))
    assert not await _tenant_of_next_user(database)
    async with database._engine.connect() as connection:
        assert (await connection.execute(text("show search_path"))).scalar_one() != "evil"
    await database.aclose()


async def test_pool__cancelled_in_a_query__is_usable_and_has_no_tenant(database_urls: Mapping[str, str]) -> None:
    database = await _database(database_urls[RUNNER])

    async def sleep() -> None:
        async with database.tenant_session("tenant-a", deadline_seconds=30) as session:
            await session.execute(text("select pg_sleep(20)"))

    task = asyncio.create_task(sleep())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await _tenant_of_next_user(database)
    await database.ping()
    await database.aclose()


async def test_session__exception__rolls_back_and_success__commits(admin_database: Database) -> None:
    insert = text("insert into extension_denylist (content_hash, reason, created_by) values (:hash, 'r', 'a')")
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the statement is what is rolled back
        async with admin_database.session() as session:
            await session.execute(insert, {"hash": "sha256:" + "a" * 64})
            raise ZeroDivisionError
    async with admin_database.session() as session:
        await session.execute(insert, {"hash": "sha256:" + "b" * 64})
    async with admin_database.session() as session:
        rows = (await session.execute(text("select content_hash from extension_denylist"))).scalars().all()
    assert rows == ["sha256:" + "b" * 64]


async def test_session__statement_too_slow__is_unavailable_and_the_pool_lives(runner_database: Database) -> None:
    with pytest.raises(RefusalError) as caught:
        async with runner_database.session(deadline_seconds=0.3) as session:
            await session.execute(text("select pg_sleep(20)"))
    assert caught.value.reason is Reason.REGISTRY_UNAVAILABLE
    await runner_database.ping()


async def test_session__many_slow_statements__end_at_the_deadline(runner_database: Database) -> None:
    with pytest.raises(RefusalError) as caught:  # noqa: PT012 - which of them is refused is not known
        async with runner_database.session(deadline_seconds=0.3) as session:
            for _ in range(1_000):
                await session.execute(text("select pg_sleep(0.05)"))
    assert caught.value.reason is Reason.REGISTRY_UNAVAILABLE
    await runner_database.ping()


async def test_session__pool_exhausted__is_unavailable(database_urls: Mapping[str, str]) -> None:
    database = await _database(database_urls[RUNNER])
    async with database.session(deadline_seconds=10):
        with pytest.raises(RefusalError) as caught:
            async with database.session(deadline_seconds=0.2):
                pytest.fail("must not open")
    assert caught.value.reason is Reason.REGISTRY_UNAVAILABLE
    await database.ping()
    await database.aclose()


async def test_session__statement_refused__is_internal_without_values(runner_database: Database) -> None:
    with pytest.raises(RefusalError) as caught:
        async with runner_database.session() as session:
            await session.execute(text("insert into extension_denylist values (:secret, 'r', 'a')"), {"secret": "pa55word"})
    assert caught.value.reason is Reason.INTERNAL
    assert "pa55word" not in f"{caught.value} {caught.value.__cause__}"


async def test_session__body_raises_a_timeout_of_its_own__it_passes_through(runner_database: Database) -> None:
    with pytest.raises(TimeoutError):
        async with runner_database.session():
            raise TimeoutError


async def test_database_stopped_and_started__costs_no_call_after_it_is_back(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    server.start()
    try:
        database = await Database.connect(server.url(RUNNER), expected_role=RUNNER, pool_size=3)
        await asyncio.gather(*(database.ping() for _ in range(3)))
        server.stop()
        began = time.monotonic()
        with pytest.raises(RefusalError) as caught:
            await database.ping()
        assert caught.value.reason is Reason.REGISTRY_UNAVAILABLE
        assert time.monotonic() - began < 10  # bounded; the deadline itself is the product's
        server.start()
        for _ in range(5):
            await database.ping()
        await database.aclose()
    finally:
        server.stop()


async def test_database_frozen__is_unavailable_within_the_deadline(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    server.start()
    try:
        database = await Database.connect(server.url(RUNNER), expected_role=RUNNER, pool_size=1)
        async with database.session() as session:
            backend = (await session.execute(text("select pg_backend_pid()"))).scalar_one()
        assert server._server is not None
        frozen = (server._server.pid, backend)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(8):
                with pytest.raises(RefusalError) as caught:
                    await database.ping()
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        assert caught.value.reason is Reason.REGISTRY_UNAVAILABLE
        await database.ping()
        await database.aclose()
    finally:
        server.stop()


async def test_a_refused_statement__is_told_to_the_operator_without_its_values(
    database_urls: Mapping[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    database = await _database(database_urls[RUNNER])
    try:
        with pytest.raises(RefusalError) as caught:
            async with database.session() as session:
                await session.execute(text("select cast(:value as uuid)"), {"value": "tenant-secret"})
        assert caught.value.reason is Reason.INTERNAL
        with pytest.raises(RefusalError):
            async with database.tenant_session("tenant-a") as session:
                await session.execute(text("insert into ext_storage_usage (tenant_id, install_id) values ('tenant-b', gen_random_uuid())"))
    finally:
        await database.aclose()
    said = [(record.message, getattr(record, "sqlstate", None)) for record in caplog.records if record.name == "registry.database"]
    assert said == [("statement refused", "22P02"), ("statement refused", "42501")]
    assert "tenant-secret" not in "".join(str(vars(record)) for record in caplog.records if record.name == "registry.database")


# --- statements that are transactions ----------------------------------------------------------------------------------------------------


async def test_statement__sees_its_tenant__and_the_next_user_has_none(database_urls: Mapping[str, str]) -> None:
    database = await _database(database_urls[RUNNER])
    statements = database.statements("tenant-a")
    for _ in range(8):  # beyond the point at which the driver prepares it
        assert (await statements.execute(_TENANT, {})).scalar_one() == "tenant-a"
        assert (await database.statements("tenant-b").execute(_TENANT, {})).scalar_one() == "tenant-b"
    assert not await _tenant_of_next_user(database)
    async with database.session() as session:
        assert (await session.execute(_TENANT)).scalar_one() == ""
    await database.aclose()


@pytest.mark.parametrize("tenant", ["", "*", "a b", "ä", "a" * 129])
def test_statement__malformed_tenant__is_refused(runner_database: Database, tenant: str) -> None:
    with pytest.raises(RefusalError) as caught:
        runner_database.statements(tenant)
    assert caught.value.reason is Reason.INVALID_REQUEST


async def test_statement__sets_the_whole_session__next_user_has_nothing_of_it(database_urls: Mapping[str, str]) -> None:
    database = await _database(database_urls[RUNNER])
    evil = text("select set_config('app.tenant_id', 'tenant-b', false), set_config('search_path', 'evil', false)")
    await database.statements("tenant-a").execute(evil, {})
    assert not await _tenant_of_next_user(database)
    async with database._engine.connect() as connection:
        assert (await connection.execute(text("show search_path"))).scalar_one() != "evil"
    await database.aclose()


async def test_statement__fails_after_it_wrote__nothing_stays(
    admin_database: Database, database_urls: Mapping[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    writes = text(
        """with written as (insert into extension_denylist (content_hash, reason, created_by) values (:hash, 'r', 'a') returning 1)
           select 1 / (count(*) - 1) from written"""
    )
    with pytest.raises(RefusalError) as caught:
        await admin_database.statements("tenant-a").execute(writes, {"hash": "sha256:" + "a" * 64})
    assert caught.value.reason is Reason.INTERNAL
    assert "aaaa" not in f"{caught.value} {caplog.text}"
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        assert connection.execute("select count(*) from extension_denylist").fetchone() == (0,)
    assert not await _tenant_of_next_user(admin_database)


async def test_statement__too_slow_or_without_a_connection__is_unavailable_and_the_pool_lives(database_urls: Mapping[str, str]) -> None:
    database = await _database(database_urls[RUNNER])
    slow = database.statements("tenant-a", deadline_seconds=0.3)
    async with asyncio.timeout(10):
        with pytest.raises(RefusalError) as caught:
            await slow.execute(text("select pg_sleep(20)"), {})
        assert caught.value.reason is Reason.REGISTRY_UNAVAILABLE
        async with database.session(deadline_seconds=10):
            with pytest.raises(RefusalError) as caught:
                await slow.execute(_TENANT, {})
        assert caught.value.reason is Reason.REGISTRY_UNAVAILABLE
    assert (await database.statements("tenant-a").execute(_TENANT, {})).scalar_one() == "tenant-a"
    await database.aclose()


async def test_statement__cancelled__pool_is_usable_and_has_no_tenant(database_urls: Mapping[str, str]) -> None:
    database = await _database(database_urls[RUNNER])
    task = asyncio.create_task(database.statements("tenant-a", deadline_seconds=30).execute(text("select pg_sleep(20)"), {}))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await _tenant_of_next_user(database)
    assert (await database.statements("tenant-b").execute(_TENANT, {})).scalar_one() == "tenant-b"
    await database.aclose()


async def test_statement__connection_was_ended_meanwhile__costs_no_call(
    postgres_cluster: EmbeddedPostgres, database_urls: Mapping[str, str]
) -> None:
    database = await _database(database_urls[RUNNER])
    statements = database.statements("tenant-a")
    backend = (await statements.execute(text("select pg_backend_pid() as pid"), {})).scalar_one()
    with psycopg.connect(libpq_conninfo(postgres_cluster.superuser_url()), autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(%s, 5000)", (backend,))
    assert (await statements.execute(text("select pg_backend_pid() as pid"), {})).scalar_one() != backend
    await database.aclose()
