"""A real PostgreSQL for tests: one cluster for each test process, an empty migrated database for each test.

In the conftest.py of a folder whose tests need it:

    from tests.fakes.postgres import admin_database, database_urls, postgres_cluster, runner_database

and leave out what is not needed (`postgres_cluster` always stays). Then

    database_urls          role ("ext_owner", "ext_runner", "ext_admin", …) -> URL of a database of this test's own
                           (in truth one database, wiped before each test: that takes a hundredth of making one)
    private_database_urls  the same, really made for this test; for tests that change the schema
    module_database_urls   the same, made for a module and shared by its tests
    admin_database         `registry.database.Database` as ext_admin in `database_urls`' database; likewise `runner_database`
    postgres_cluster       `registry.embedded_postgres.EmbeddedPostgres`; `superuser_url()` is for catalogue queries only

Nobody connects as superuser but migrations' tests: a superuser ignores row-level security, and such a test could not fail (T17).
`TEST_POSTGRES_BINARIES=/usr/lib/postgresql/15/bin` runs everything on another server.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql

from registry import migrations
from registry.database import Database
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import ADMIN, OWNER, ROLES, RUNNER, libpq_conninfo

_TEMPLATE = "extrunner_template"
_REUSED = "extrunner_reused"
_shared: list[EmbeddedPostgres] = []
_users = 0


def chosen_binaries() -> Path | None:
    chosen = os.environ.get("TEST_POSTGRES_BINARIES")
    return None if chosen is None else Path(chosen)


@pytest.fixture(scope="session")
def postgres_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The cluster of this test process, also when several conftest files import this fixture."""
    global _users  # noqa: PLW0603 - counts the conftest files that hold the cluster
    if not _shared:
        cluster = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), binaries=chosen_binaries(), durable=False)
        cluster.start()
        _shared.append(cluster)
        create_database(cluster, _TEMPLATE, template="template0")
        migrations.upgrade(cluster.url(OWNER, database=_TEMPLATE))
        create_database(cluster, _REUSED)
    _users += 1
    try:
        yield _shared[0]
    finally:
        _users -= 1
        if _users == 0:
            _shared.pop().stop()


def create_database(cluster: EmbeddedPostgres, name: str, *, template: str = _TEMPLATE) -> None:
    """Make a database as `create_roles` makes it, by default with all migrations applied."""
    with psycopg.connect(libpq_conninfo(cluster.superuser_url()), autocommit=True) as connection:
        identifier = sql.Identifier(name)
        connection.execute(
            sql.SQL("create database {} template {} owner {} encoding 'UTF8'").format(
                identifier, sql.Identifier(template), sql.Identifier(OWNER)
            )
        )
        connection.execute(sql.SQL("revoke all on database {} from public").format(identifier))
        roles = sql.SQL(", ").join(map(sql.Identifier, ROLES))
        connection.execute(sql.SQL("grant connect on database {} to {}").format(identifier, roles))
    if template == "template0":
        with psycopg.connect(libpq_conninfo(cluster.superuser_url(database=name)), autocommit=True) as connection:
            connection.execute("revoke all on schema public from public")
            connection.execute(sql.SQL("grant usage, create on schema public to {}").format(sql.Identifier(OWNER)))
            connection.execute(sql.SQL("grant usage on schema public to {}").format(roles))


def _wipe(cluster: EmbeddedPostgres) -> None:
    """Empty the reused database; whoever is still connected to it, of an earlier test, is thrown out first."""
    with psycopg.connect(libpq_conninfo(cluster.superuser_url()), autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (_REUSED,))
    with psycopg.connect(libpq_conninfo(cluster.superuser_url(database=_REUSED))) as connection:
        connection.execute("set local session_replication_role = replica")  # past the trigger and in any order
        tables = connection.execute(
            """select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
                and not c.relispartition and c.relname <> 'alembic_version'"""
        ).fetchall()
        connection.execute(sql.SQL("; ").join(sql.SQL("delete from {}").format(sql.Identifier(row[0])) for row in tables))


@contextmanager
def fresh_database(cluster: EmbeddedPostgres) -> Iterator[Mapping[str, str]]:
    name = f"test_{secrets.token_hex(6)}"
    create_database(cluster, name)
    try:
        yield {role: cluster.url(role, database=name) for role in ROLES}
    finally:
        with psycopg.connect(libpq_conninfo(cluster.superuser_url()), autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def database_urls(postgres_cluster: EmbeddedPostgres) -> Mapping[str, str]:
    _wipe(postgres_cluster)
    return {role: postgres_cluster.url(role, database=_REUSED) for role in ROLES}


@pytest.fixture
def private_database_urls(postgres_cluster: EmbeddedPostgres) -> Iterator[Mapping[str, str]]:
    with fresh_database(postgres_cluster) as urls:
        yield urls


@pytest.fixture(scope="module")
def module_database_urls(postgres_cluster: EmbeddedPostgres) -> Iterator[Mapping[str, str]]:
    with fresh_database(postgres_cluster) as urls:
        yield urls


@pytest_asyncio.fixture
async def admin_database(database_urls: Mapping[str, str]) -> AsyncIterator[Database]:
    database = await Database.connect(database_urls[ADMIN], expected_role=ADMIN)
    yield database
    await database.aclose()


@pytest_asyncio.fixture
async def runner_database(database_urls: Mapping[str, str]) -> AsyncIterator[Database]:
    database = await Database.connect(database_urls[RUNNER], expected_role=RUNNER)
    yield database
    await database.aclose()
