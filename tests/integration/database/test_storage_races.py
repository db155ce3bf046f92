"""Many at once on one install: writers of all kinds, sweepers, a purge, cancelled calls, a dying server.

The sums stay true and nothing is half.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from registry import migrations
from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import InstallId
from registry.domain.limits import OPERATOR_DEFAULTS
from registry.domain.records import StorageItem
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import ADMIN, MAINTENANCE, OWNER, RUNNER, libpq_conninfo
from registry.services.installing import InstallService
from registry.services.retention import RetentionService
from registry.services.storage import StorageCase, StorageRefusalError, StorageService
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, install, publish

LIMITS = replace(OPERATOR_DEFAULTS.storage, keys_per_namespace=6, total_bytes=200)
# Time does not wait for locks as this statement does; the owner takes them in the order in which everybody else does.
_EXPIRE = """select from ext_storage_usage for update;
    update ext_storage_record set ttl_expires_at = now() - interval '1 second' where ttl_expires_at is not null"""


@pytest_asyncio.fixture
async def install_id(admin_database: Database) -> InstallId:
    await publish(admin_database)
    return (await install(admin_database)).install_id


@pytest_asyncio.fixture
async def retention(database_urls: Mapping[str, str]) -> AsyncIterator[RetentionService]:
    database = await Database.connect(database_urls[MAINTENANCE], expected_role=MAINTENANCE)
    yield RetentionService(database)
    await database.aclose()


def item(key: str, value: bytes = b"", *, ttl_seconds: int | None = None, metadata: str | None = None) -> StorageItem:
    return StorageItem(key=key, value=value, ttl_seconds=ttl_seconds, metadata=metadata)


@pytest.fixture
def deadlocks_at_once(postgres_cluster: EmbeddedPostgres) -> Iterator[None]:
    """Have the server look for deadlocks long before a deadline ends a wait."""
    with psycopg.connect(libpq_conninfo(postgres_cluster.superuser_url()), autocommit=True) as connection:
        connection.execute("alter system set deadlock_timeout = '20ms'")
        connection.execute("select pg_reload_conf()")
        yield
        connection.execute("alter system reset deadlock_timeout")
        connection.execute("select pg_reload_conf()")


def is_late(refusal: StorageRefusalError) -> bool:
    """Tell whether a deadline passed, which on a busy machine may be, and no deadlock, which must not."""
    cause = refusal.__cause__
    assert not isinstance(cause and cause.__cause__, psycopg.errors.DeadlockDetected)
    return isinstance(cause, RefusalError) and cause.reason is Reason.REGISTRY_UNAVAILABLE


def as_owner(urls: Mapping[str, str], statement: str) -> None:
    with psycopg.connect(libpq_conninfo(urls[OWNER])) as connection:
        connection.execute(statement.encode())


def true_sums(urls: Mapping[str, str]) -> tuple[int, int, int]:
    """Return bytes, keys and namespaces of the only install that stores anything, after comparing the kept sums with the records."""
    with psycopg.connect(libpq_conninfo(urls[OWNER])) as connection:
        kept = connection.execute("select bytes_used, keys_count, namespaces_count from ext_storage_usage").fetchone()
        counted = connection.execute(
            """select coalesce(sum(octet_length(value) + coalesce(octet_length(metadata), 0)), 0)::bigint, count(*),
                      count(distinct namespace) from ext_storage_record"""
        ).fetchone()
        by_namespace = connection.execute(
            "select coalesce(jsonb_object_agg(namespace, n), '{}') from (select namespace, count(*) n from ext_storage_record group by 1) g"
        ).fetchone()
        assert connection.execute("select namespace_keys from ext_storage_usage").fetchone() == by_namespace
    assert kept == counted
    assert kept is not None
    return kept


@pytest.mark.usefixtures("deadlocks_at_once")
async def test_everybody_at_once__sums_are_true_and_nobody_meets_crosswise(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId, retention: RetentionService
) -> None:
    storage = StorageService(runner_database, writes_per_install=8)
    dice = random.Random(7)
    cases: set[StorageCase] = set()

    async def write() -> None:
        for _ in range(12):
            namespace, keys = dice.choice("ab"), dice.sample("uvwxyz", 3)
            new = [
                item(key, b"x" * dice.randrange(30), ttl_seconds=dice.choice([None, 60]), metadata=dice.choice([None, "m"])) for key in keys
            ]
            try:
                match dice.randrange(4):
                    case 0:
                        await storage.put_many(TENANT, install_id, namespace, new, limits=LIMITS)
                    case 1:
                        await storage.delete(TENANT, install_id, namespace, keys[0])
                    case 2:
                        await storage.put(TENANT, install_id, namespace, new[0], revision=dice.randrange(3), limits=LIMITS)
                    case _:
                        await storage.put(TENANT, install_id, namespace, new[0], limits=LIMITS)
            except StorageRefusalError as refusal:
                if not is_late(refusal):
                    cases.add(refusal.case)

    async def expire_and_sweep() -> None:
        for _ in range(6):
            await asyncio.to_thread(as_owner, database_urls, _EXPIRE)
            await retention.sweep_storage(batch=2)

    await asyncio.gather(*(write() for _ in range(8)), expire_and_sweep(), expire_and_sweep())
    assert cases <= {StorageCase.MISSING, StorageCase.CONFLICT, StorageCase.QUOTA_EXCEEDED}
    used, keys, _ = true_sums(database_urls)
    assert used <= LIMITS.total_bytes
    assert keys <= 2 * LIMITS.keys_per_namespace


async def test_put_many__while_others_read__is_seen_whole_or_not_at_all(runner_database: Database, install_id: InstallId) -> None:
    storage = StorageService(runner_database)
    await storage.put_many(TENANT, install_id, "n", [item("a", b"0"), item("b", b"0")])
    written = asyncio.Event()

    async def write() -> None:
        for number in range(30):
            await storage.put_many(TENANT, install_id, "n", [item(key, str(number).encode()) for key in "ab"])
        written.set()

    async def read() -> None:
        while not written.is_set():
            page, _ = await storage.list_entries(TENANT, install_id, "n")
            assert len({(entry.value, entry.revision) for entry in page}) == 1

    await asyncio.gather(write(), read(), read())


async def test_put_many__one_item_too_many__writes_none(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    await storage.put(TENANT, install_id, "n", item("a", b"kept"))
    before = true_sums(database_urls)
    for limits in (replace(LIMITS, keys_per_namespace=2), replace(LIMITS, total_bytes=5)):
        with pytest.raises(StorageRefusalError) as caught:
            await storage.put_many(TENANT, install_id, "n", [item("a", b"lost"), item("b", b"lost"), item("c")], limits=limits)
        assert caught.value.case is StorageCase.QUOTA_EXCEEDED
    assert true_sums(database_urls) == before
    assert (await storage.get(TENANT, install_id, "n", "a")).value == b"kept"


async def test_quota_that_expired_records_hold__is_free_for_who_needs_it(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    limits = replace(LIMITS, namespaces=1, keys_per_namespace=2, total_bytes=10)
    await storage.put_many(
        TENANT, install_id, "old", [item("a", b"x" * 5, ttl_seconds=60), item("b", b"x" * 5, ttl_seconds=60)], limits=limits
    )
    new = item("c", b"y" * 10)
    for namespace in ("old", "new"):
        with pytest.raises(StorageRefusalError) as caught:
            await storage.put(TENANT, install_id, namespace, new, limits=limits)
        assert caught.value.case is StorageCase.QUOTA_EXCEEDED
    as_owner(database_urls, _EXPIRE)
    assert true_sums(database_urls) == (10, 2, 1)
    assert await storage.put(TENANT, install_id, "new", new, limits=limits) == 1
    assert true_sums(database_urls) == (10, 1, 1)


async def test_sweepers__two_at_once__take_each_record_once_and_every_tenants(
    admin_database: Database,
    runner_database: Database,
    database_urls: Mapping[str, str],
    install_id: InstallId,
    retention: RetentionService,
) -> None:
    storage = StorageService(runner_database)
    theirs = (await install(admin_database, OTHER_TENANT)).install_id
    for tenant, of in ((TENANT, install_id), (OTHER_TENANT, theirs)):
        for namespace in ("m", "n"):
            await storage.put_many(tenant, of, namespace, [item(f"k{number}", b"x", ttl_seconds=60) for number in range(9)])
        await storage.put(tenant, of, "n", item("kept", b"for good"))
    as_owner(database_urls, _EXPIRE)
    counts = await asyncio.gather(*(retention.sweep_storage(batch=4) for _ in range(3)))
    # One that meets the other everywhere goes home early; whoever is last leaves nothing.
    assert sum(counts) + await retention.sweep_storage() == 36
    assert await retention.sweep_storage() == 0
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        rows = connection.execute("select bytes_used, keys_count, namespaces_count, namespace_keys from ext_storage_usage").fetchall()
    assert rows == [(8, 1, 1, {"n": 1})] * 2


async def test_sweeper__install_is_being_written_to__is_left_for_the_next_time(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId, retention: RetentionService
) -> None:
    await StorageService(runner_database).put(TENANT, install_id, "n", item("k", b"x", ttl_seconds=60))
    as_owner(database_urls, _EXPIRE)
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute("select from ext_storage_usage for update")
        assert await retention.sweep_storage() == 0
    assert await retention.sweep_storage() == 1
    assert true_sums(database_urls) == (0, 0, 0)


async def test_sweeper__install_never_stops_writing__keeps_no_other_from_being_swept(
    admin_database: Database,
    runner_database: Database,
    database_urls: Mapping[str, str],
    install_id: InstallId,
    retention: RetentionService,
) -> None:
    storage = StorageService(runner_database)
    theirs = (await install(admin_database, OTHER_TENANT)).install_id
    items = [item(f"k{number}", b"x", ttl_seconds=60) for number in range(4)]
    await storage.put_many(TENANT, install_id, "n", items)
    await storage.put_many(OTHER_TENANT, theirs, "n", items)
    as_owner(database_urls, "update ext_storage_record set ttl_expires_at = now() - interval '1 hour'")
    as_owner(database_urls, f"update ext_storage_record set ttl_expires_at = now() - interval '1 day' where tenant_id = '{TENANT}'")
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute(f"select from ext_storage_usage where tenant_id = '{TENANT}' for update".encode())
        # What expired first is all of one install's, and more than one look takes.
        assert await retention.sweep_storage(batch=2) == 4
    assert await retention.sweep_storage(batch=2) == 4


@pytest.mark.usefixtures("deadlocks_at_once")
async def test_purge__while_others_write__ends_as_denied_and_leaves_nothing(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    await storage.put(TENANT, install_id, "n", item("k"))

    async def write(number: int) -> StorageCase | None:
        while True:
            try:
                await storage.put(TENANT, install_id, "n", item(f"k{number}", b"x"))
            except StorageRefusalError as refusal:
                if not is_late(refusal):
                    return refusal.case

    async def purge() -> None:
        await InstallService(admin_database).uninstall(TENANT, install_id, purge=True, actor="a")

    *cases, _ = await asyncio.gather(*(write(number) for number in range(4)), purge())
    assert cases == [StorageCase.DENIED] * 4
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        assert connection.execute("select count(*) from ext_storage_record").fetchone() == (0,)


async def test_crowd_of_one_install__leaves_connections_to_the_others(
    admin_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    theirs = (await install(admin_database, OTHER_TENANT)).install_id
    runner = await Database.connect(database_urls[RUNNER], expected_role=RUNNER, pool_size=3)
    storage = StorageService(runner, writes_per_install=2)
    await storage.put(TENANT, install_id, "n", item("k"))
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute(f"select from ext_storage_usage where tenant_id = '{TENANT}' for update".encode())
        crowd = [asyncio.create_task(storage.put(TENANT, install_id, "n", item(f"k{number}"))) for number in range(12)]
        assert await storage.put(OTHER_TENANT, theirs, "n", item("k")) == 1
        for task in crowd:
            task.cancel()
        results = await asyncio.gather(*crowd, return_exceptions=True)
    for result in results:
        assert isinstance(result, asyncio.CancelledError) or (isinstance(result, StorageRefusalError) and is_late(result))
    assert await storage.put(TENANT, install_id, "n", item("k")) == 2
    await runner.aclose()
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        stored = connection.execute("select tenant_id, key from ext_storage_record").fetchall()
    # What was with the server when it was cancelled may have been done; who waited for a turn was not there.
    assert {(TENANT, "k"), (OTHER_TENANT, "k")} <= set(stored) <= {(TENANT, "k"), (OTHER_TENANT, "k"), (TENANT, "k0"), (TENANT, "k1")}


async def test_revision_at_its_end__is_internal_and_changes_nothing(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    await storage.put(TENANT, install_id, "n", item("k", b"kept"))
    as_owner(database_urls, "update ext_storage_record set revision = 9223372036854775807")
    with pytest.raises(StorageRefusalError) as caught:
        await storage.put_many(TENANT, install_id, "n", [item("new"), item("k", b"lost")])
    assert caught.value.case is StorageCase.INTERNAL
    assert true_sums(database_urls) == (4, 1, 1)
    await storage.delete(TENANT, install_id, "n", "k", revision=2**63 - 1)


async def test_server_dies_among_writes__nothing_is_half_and_it_goes_on_afterwards(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as server:
        migrations.upgrade(server.url(OWNER))
        urls = {role: server.url(role) for role in (OWNER, ADMIN, RUNNER)}
        admin = await Database.connect(urls[ADMIN], expected_role=ADMIN)
        runner = await Database.connect(urls[RUNNER], expected_role=RUNNER)
        await publish(admin)
        of = (await install(admin)).install_id
        await admin.aclose()
        storage = StorageService(runner)
        acknowledged: list[int] = []
        has_written = asyncio.Event()

        async def write() -> StorageCase:
            while True:
                try:
                    revisions = await storage.put_many(TENANT, of, "n", [item("a", b"xx"), item("b", b"yyy")])
                except StorageRefusalError as refusal:
                    return refusal.case
                acknowledged.append(revisions[0])
                has_written.set()

        async def stop() -> None:
            await has_written.wait()
            await asyncio.to_thread(server.stop)

        *cases, _ = await asyncio.gather(write(), write(), stop())
        assert cases == [StorageCase.INTERNAL] * 2
        server.start()
        # The connections of before are dead, and no call is lost to them.
        page, _ = await storage.list_entries(TENANT, of, "n")
        assert [entry.value for entry in page] == [b"xx", b"yyy"]
        assert page[0].revision == page[1].revision >= max(acknowledged)
        assert true_sums(urls) == (5, 2, 1)
        assert await storage.put_many(TENANT, of, "n", [item("a"), item("b")]) == (page[0].revision + 1,) * 2
        await runner.aclose()
