from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine
from sqlmodel import SQLModel

import registry.models
from registry import migrations
from registry.database import Database
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import ADMIN, OWNER, ROLES, RUNNER, RoleSetupError, create_roles, libpq_conninfo
from registry.services.executions import ExecutionQuery, ExecutionRecorder
from tests.fakes.postgres import create_database
from tests.fakes.registry_rows import execution, install, publish

_DEBIAN = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture
def empty_urls(postgres_cluster: EmbeddedPostgres) -> Iterator[Mapping[str, str]]:
    create_database(postgres_cluster, "empty", template="template0")
    yield {role: postgres_cluster.url(role, database="empty") for role in ROLES}
    with psycopg.connect(libpq_conninfo(postgres_cluster.superuser_url()), autocommit=True) as connection:
        connection.execute("drop database empty with (force)")


def _relations(url: str) -> list[str]:
    with psycopg.connect(libpq_conninfo(url)) as connection:
        rows = connection.execute(
            """select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')
               union all select proname from pg_proc where pronamespace = 'public'::regnamespace order by 1"""
        )
        return [row[0] for row in rows]


def test_upgrade__down_and_up_again__leaves_nothing_and_comes_back(empty_urls: Mapping[str, str]) -> None:
    owner = empty_urls[OWNER]
    assert migrations.current(owner) is None
    assert migrations.upgrade(owner) == migrations.head() == migrations.current(owner)
    first = _relations(owner)
    assert migrations.upgrade(owner) == migrations.head()
    assert migrations.downgrade(owner) is None
    assert _relations(owner) == ["alembic_version"]
    migrations.upgrade(owner)
    assert _relations(owner) == first


def test_upgrade__not_the_owner__changes_nothing(empty_urls: Mapping[str, str]) -> None:
    with pytest.raises(migrations.MigrationError):
        migrations.upgrade(empty_urls[ADMIN])
    assert _relations(empty_urls[OWNER]) == []


def test_upgrade__fails_half_way__changes_nothing(empty_urls: Mapping[str, str]) -> None:
    with psycopg.connect(libpq_conninfo(empty_urls[OWNER]), autocommit=True) as connection:
        connection.execute("create table extension_audit_log (id integer)")
        with pytest.raises(migrations.MigrationError, match="extension_audit_log"):
            migrations.upgrade(empty_urls[OWNER])
        assert _relations(empty_urls[OWNER]) == ["extension_audit_log"]


async def test_upgrade__two_at_once__one_does_it(empty_urls: Mapping[str, str]) -> None:
    reached = await asyncio.gather(*(asyncio.to_thread(migrations.upgrade, empty_urls[OWNER]) for _ in range(3)))
    assert set(reached) == {migrations.head()}


def test_current__nobody_there__says_so_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(migrations.MigrationError) as caught:
        migrations.current(f"postgresql+psycopg://ext_owner:pa55word@/extrunner?host={tmp_path}")
    assert "pa55word" not in str(caught.value)


def test_models__compared_with_the_live_tables__are_the_same(database_urls: Mapping[str, str]) -> None:
    assert registry.models.__all__
    engine = create_engine(database_urls[OWNER])
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_name": lambda name, kind, parents: (
                    kind != "table" or not str(name).startswith(("alembic_", "extension_execution_log_"))
                )
            },
        )
        differences = compare_metadata(context, SQLModel.metadata)
    engine.dispose()
    assert differences == []


def test_published_version__deleted_or_taken_back_by_the_owner__is_refused(database_urls: Mapping[str, str]) -> None:
    async def prepare() -> None:
        admin = await Database.connect(database_urls[ADMIN], expected_role=ADMIN)
        await publish(admin)
        await admin.aclose()

    asyncio.run(prepare())
    for statement in ("delete from extension_version", "update extension_version set state = 'pending', published_at = null"):
        with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection, pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute(statement.encode())


def test_owner__data_migration_under_forced_security__touches_the_rows(database_urls: Mapping[str, str]) -> None:
    """N9: without a policy that names the owner, an update touches 0 rows and says nothing."""

    async def prepare() -> None:
        admin = await Database.connect(database_urls[ADMIN], expected_role=ADMIN)
        await publish(admin)
        await install(admin)
        await admin.aclose()

    asyncio.run(prepare())
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        assert connection.execute("update tenant_extension_install set runner_status = '{}'").rowcount == 1


async def test_late_partition__takes_its_rows_over_from_the_default_one(private_database_urls: Mapping[str, str]) -> None:
    admin = await Database.connect(private_database_urls[ADMIN], expected_role=ADMIN)
    runner = await Database.connect(private_database_urls[RUNNER], expected_role=RUNNER)
    await publish(admin)
    view = await install(admin)
    far = (datetime.now(UTC).replace(day=1) + timedelta(days=31 * (migrations.MONTHS_AHEAD + 1) + 3)).replace(day=15)
    recorder = ExecutionRecorder(runner)
    await recorder.start()
    recorder.record(replace(execution(view), started_at=far))
    recorder.record(replace(execution(view), started_at=datetime(2001, 1, 1, tzinfo=UTC)))
    assert await recorder.aclose() == 0
    with psycopg.connect(libpq_conninfo(private_database_urls[OWNER])) as connection:
        count = "select count(*) from extension_execution_log_default"
        assert connection.execute(count).fetchone() == (2,)
        connection.commit()
        migrations.ensure_partitions(private_database_urls[OWNER], 12)
        assert connection.execute(count).fetchone() == (1,)
    rows, _ = await ExecutionQuery(admin).list_executions(view.tenant_id)
    assert len(rows) == 2
    await runner.aclose()
    await admin.aclose()


def test_create_roles__again_and_with_a_new_password__works(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as server:
        create_roles(server.superuser_url(), {})
        create_roles(server.superuser_url(), {RUNNER: "another password: %@/?"})
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(libpq_conninfo(server.url(RUNNER)))
        with psycopg.connect(libpq_conninfo(server.superuser_url())) as connection:
            stored = connection.execute("select rolpassword from pg_authid where rolname = 'ext_runner'").fetchone()
            assert stored is not None
            assert stored[0].startswith("SCRAM-SHA-256$")
            connection.execute("alter role ext_admin bypassrls")
            connection.commit()
        with pytest.raises(RoleSetupError, match="ext_admin"):
            create_roles(server.superuser_url(), {})


@pytest.mark.parametrize("password", ["", "x"])
def test_create_roles__unknown_role__is_refused(password: str) -> None:
    with pytest.raises(RoleSetupError, match="unknown roles"):
        create_roles("postgresql://nobody@/none", {"postgres": password})


def test_create_roles__nobody_there__says_so_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(RoleSetupError) as caught:
        create_roles(f"postgresql://su:pa55word@/postgres?host={tmp_path}", {})
    assert "pa55word" not in str(caught.value)


@pytest.mark.skipif(not _DEBIAN.is_dir(), reason="no PostgreSQL 15 of Debian's here")
async def test_postgresql_15__roles_schema_and_services__work(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", binaries=_DEBIAN, durable=False) as server:
        with psycopg.connect(libpq_conninfo(server.url(RUNNER))) as connection:
            assert connection.info.server_version // 10_000 == 15
        assert migrations.upgrade(server.url(OWNER)) == migrations.head()
        admin = await Database.connect(server.url(ADMIN), expected_role=ADMIN)
        await publish(admin)
        await install(admin)
        await admin.aclose()
        assert migrations.downgrade(server.url(OWNER)) is None
