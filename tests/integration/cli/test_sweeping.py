"""`extctl db sweep --every`: a process that clears what expires, outlasts a database that is away, and ends when it is told to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest

from registry.cli.child import ChildProcess
from registry.cli.development import find_program
from registry.database import Database
from registry.domain.records import StorageItem
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import MAINTENANCE, OWNER, libpq_conninfo
from registry.services.storage import StorageService
from tests.fakes.registry_rows import TENANT, install, publish

_WAIT_SECONDS = 60


@pytest.fixture
def sweeper(database_urls: Mapping[str, str], tmp_path: Path) -> Iterator[ChildProcess]:
    (tmp_path / "url").write_text(database_urls[MAINTENANCE])
    command = [find_program("extctl"), "db", "sweep", "--every", "1", "--url-file", str(tmp_path / "url")]
    child = ChildProcess("sweep", command, environment={"PATH": "/usr/bin:/bin"}, log=tmp_path / "log")
    try:
        yield child
    finally:
        child.stop(timeout_seconds=_WAIT_SECONDS)


async def test_every__clears_what_expires_and_says_how_much(
    sweeper: ChildProcess, admin_database: Database, runner_database: Database, database_urls: Mapping[str, str], tmp_path: Path
) -> None:
    sweeper.wait_until(lambda: sweeper.has_logged("swept"), timeout_seconds=_WAIT_SECONDS)
    await publish(admin_database)
    install_id = (await install(admin_database)).install_id
    storage = StorageService(runner_database)
    await storage.put_many(TENANT, install_id, "n", [StorageItem(key=key, value=b"secret", ttl_seconds=60) for key in "ab"])
    await storage.put(TENANT, install_id, "n", StorageItem(key="kept", value=b""))
    with psycopg.connect(libpq_conninfo(database_urls[OWNER]), autocommit=True) as owner:
        owner.execute("update ext_storage_record set ttl_expires_at = now() - interval '1 second' where ttl_expires_at is not null")
        sweeper.wait_until(
            lambda: owner.execute("select count(*) from ext_storage_record").fetchone() == (1,), timeout_seconds=_WAIT_SECONDS
        )
        assert owner.execute("select bytes_used, keys_count from ext_storage_usage").fetchone() == (0, 1)
    sweeper.stop(timeout_seconds=_WAIT_SECONDS)
    said = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["event"] for line in (said[0], said[-1])] == ["sweeping", "stopped"]
    assert sum(line.get("records", 0) for line in said) == 2
    assert not {"a", "secret", TENANT} & {str(value) for line in said for value in line.values()}


def test_every__database_away__is_tried_again(postgres_cluster: EmbeddedPostgres, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(postgres_cluster.url(MAINTENANCE, database="not_there"))
    command = [find_program("extctl"), "db", "sweep", "--every", "1", "--url-file", str(tmp_path / "url")]
    child = ChildProcess("sweep", command, environment={"PATH": "/usr/bin:/bin"}, log=tmp_path / "log")
    try:
        child.wait_until(lambda: (tmp_path / "log").read_text().count("sweep_failed") > 1, timeout_seconds=_WAIT_SECONDS)
    finally:
        child.stop(timeout_seconds=_WAIT_SECONDS)
