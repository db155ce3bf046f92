from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from registry import migrations
from registry.database import Database
from registry.domain.ids import InstallId, new_id
from registry.domain.limits import OPERATOR_DEFAULTS
from registry.domain.records import StorageEntry, StorageItem
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import ADMIN, OWNER, RUNNER, libpq_conninfo
from registry.services.installing import InstallService
from registry.services.pages import encode_cursor
from registry.services.storage import PAGE_BYTES, StorageCase, StorageRefusalError, StorageService
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, install, publish


def item(key: str, value: bytes = b"", **more: Any) -> StorageItem:
    return StorageItem(key=key, value=value, **more)


class Limited(StorageService):
    """The service for an install whose limits are these."""

    def __init__(self, database: Database, **limits: int) -> None:
        super().__init__(database)
        self.put = partial(super().put, limits=replace(OPERATOR_DEFAULTS.storage, **limits))  # type: ignore[method-assign]


@pytest_asyncio.fixture
async def install_id(admin_database: Database) -> AsyncIterator[InstallId]:
    await publish(admin_database)
    yield (await install(admin_database)).install_id


async def _refused(attempt: Awaitable[object], case: StorageCase) -> StorageRefusalError:
    with pytest.raises(StorageRefusalError) as caught:
        await attempt
    assert caught.value.case is case
    assert caught.value.detail
    return caught.value


def _usage(urls: Mapping[str, str], install_id: str) -> tuple[object, ...]:
    """Return the kept sums, after comparing them with the records themselves."""
    with psycopg.connect(libpq_conninfo(urls[OWNER])) as connection:
        kept = connection.execute(
            "select bytes_used, keys_count, namespaces_count, namespace_keys from ext_storage_usage where install_id = %s", (install_id,)
        ).fetchone()
        counted = connection.execute(
            """select coalesce(sum(octet_length(value) + coalesce(octet_length(metadata), 0)), 0)::bigint,
                      count(*), count(distinct namespace),
                      (select coalesce(jsonb_object_agg(namespace, n), '{}') from
                         (select namespace, count(*) n from ext_storage_record where install_id = %(id)s group by 1) g)
                 from ext_storage_record where install_id = %(id)s""",
            {"id": install_id},
        ).fetchone()
    assert kept == counted
    assert kept is not None
    return kept[:3]


async def test_put_get_delete__revisions_and_sums(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    assert await storage.put(TENANT, install_id, "notes", item("a", b"\x00\xff binary")) == 1
    first = StorageEntry(namespace="notes", key="a", value=b"\x00\xff binary", revision=1)
    assert await storage.get(TENANT, install_id, "notes", "a") == first
    assert await storage.put(TENANT, install_id, "notes", item("a", b"")) == 2
    assert await storage.put(TENANT, install_id, "notes", item("a", b"xyz"), revision=2) == 3
    assert _usage(database_urls, install_id) == (3, 1, 1)
    await storage.delete(TENANT, install_id, "notes", "a")
    await _refused(storage.get(TENANT, install_id, "notes", "a"), StorageCase.MISSING)
    await _refused(storage.delete(TENANT, install_id, "notes", "a"), StorageCase.MISSING)
    assert _usage(database_urls, install_id) == (0, 0, 0)


async def test_put__expected_revision(runner_database: Database, install_id: InstallId) -> None:
    storage = StorageService(runner_database)
    await _refused(storage.put(TENANT, install_id, "n", item("k", b"x"), revision=1), StorageCase.CONFLICT)
    assert await storage.put(TENANT, install_id, "n", item("k", b"x"), revision=0) == 1
    for wrong in (0, 2, 2**63 - 1, 2**63, 2**64 - 1, -1):
        await _refused(storage.put(TENANT, install_id, "n", item("k", b"x"), revision=wrong), StorageCase.CONFLICT)
        if wrong > 0:
            await _refused(storage.delete(TENANT, install_id, "n", "k", revision=wrong), StorageCase.CONFLICT)
    await storage.delete(TENANT, install_id, "n", "k", revision=1)


async def test_put__two_creators_of_one_key__one_wins(runner_database: Database, install_id: InstallId) -> None:
    storage = StorageService(runner_database)
    answers = await asyncio.gather(
        *(storage.put(TENANT, install_id, "n", item("k", b"x"), revision=0) for _ in range(5)), return_exceptions=True
    )
    refusals = [answer for answer in answers if isinstance(answer, StorageRefusalError)]
    assert [refusal.case for refusal in refusals] == [StorageCase.CONFLICT] * 4


async def test_put__concurrent_increments__lose_none(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    await storage.put(TENANT, install_id, "n", item("counter", b"0"))

    async def increment() -> None:
        while True:
            entry = await storage.get(TENANT, install_id, "n", "counter")
            try:
                await storage.put(TENANT, install_id, "n", item("counter", str(int(entry.value) + 1).encode()), revision=entry.revision)
            except StorageRefusalError as refusal:
                assert refusal.case is StorageCase.CONFLICT  # noqa: PT017 - only this case is tried again
            else:
                return

    await asyncio.gather(*(increment() for _ in range(5)))
    entry = await storage.get(TENANT, install_id, "n", "counter")
    assert (entry.value, entry.revision) == (b"5", 6)
    _usage(database_urls, install_id)


_NUL_AND_HALVES = ["", "a\0", "\ud800"]


@pytest.mark.parametrize("namespace", [*_NUL_AND_HALVES, "n" * 129])
async def test_namespace__malformed__is_invalid(runner_database: Database, install_id: InstallId, namespace: str) -> None:
    storage = StorageService(runner_database)
    await _refused(storage.put(TENANT, install_id, namespace, item("k", b"")), StorageCase.INVALID)
    await _refused(storage.get(TENANT, install_id, namespace, "k"), StorageCase.INVALID)
    await _refused(storage.delete(TENANT, install_id, namespace, "k"), StorageCase.INVALID)
    await _refused(storage.list_entries(TENANT, install_id, namespace), StorageCase.INVALID)


@pytest.mark.parametrize("key", [*_NUL_AND_HALVES, "k" * 257, "a/b", "/"])
async def test_key__malformed__is_invalid(runner_database: Database, install_id: InstallId, key: str) -> None:
    storage = StorageService(runner_database)
    await _refused(storage.put(TENANT, install_id, "n", item(key, b"")), StorageCase.INVALID)
    await _refused(storage.get(TENANT, install_id, "n", key), StorageCase.INVALID)


@pytest.mark.parametrize("name", ["\U0001f600" * 128, "a\nb", "..", "%_", "' or 1=1 --", "\u202e", "é", "e\u0301"])
async def test_names__odd_but_allowed__are_kept_exactly(runner_database: Database, install_id: InstallId, name: str) -> None:
    storage = StorageService(runner_database)
    await storage.put(TENANT, install_id, name, item(name, b"x"))
    (entry,), cursor = await storage.list_entries(TENANT, install_id, name)
    assert (entry.namespace, entry.key, cursor) == (name, name, None)
    await _refused(storage.get(TENANT, install_id, name, name + "x"[: 256 - len(name)]), StorageCase.MISSING)


async def test_value__at_and_over_its_limit(runner_database: Database, install_id: InstallId) -> None:
    storage = StorageService(runner_database)
    await storage.put(TENANT, install_id, "n", item("k", b"x" * 65_535))
    await storage.put(TENANT, install_id, "n", item("k", b"x" * 65_536))
    await _refused(storage.put(TENANT, install_id, "n", item("k", b"x" * 65_537)), StorageCase.INVALID)


async def test_keys__at_and_over_their_limit(runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId) -> None:
    storage = Limited(runner_database, keys_per_namespace=2)
    for key in "ab":
        await storage.put(TENANT, install_id, "n", item(key, b""))
    await _refused(storage.put(TENANT, install_id, "n", item("c", b"")), StorageCase.QUOTA_EXCEEDED)
    await storage.put(TENANT, install_id, "n", item("a", b"again"))
    await storage.put(TENANT, install_id, "other", item("c", b""))
    await storage.delete(TENANT, install_id, "n", "a")
    await storage.put(TENANT, install_id, "n", item("c", b""))
    assert _usage(database_urls, install_id) == (0, 3, 2)


async def test_namespaces__at_and_over_their_limit(runner_database: Database, install_id: InstallId) -> None:
    storage = Limited(runner_database, namespaces=2)
    for namespace in ("one", "two"):
        await storage.put(TENANT, install_id, namespace, item("k", b""))
    await _refused(storage.put(TENANT, install_id, "three", item("k", b"")), StorageCase.QUOTA_EXCEEDED)
    await storage.delete(TENANT, install_id, "one", "k")
    await storage.put(TENANT, install_id, "three", item("k", b""))


async def test_bytes__at_and_over_their_limit__and_smaller_is_always_possible(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = Limited(runner_database, total_bytes=100)
    await storage.put(TENANT, install_id, "n", item("a", b"x" * 60))
    await storage.put(TENANT, install_id, "n", item("b", b"x" * 40))
    await _refused(storage.put(TENANT, install_id, "n", item("c", b"x")), StorageCase.QUOTA_EXCEEDED)
    await _refused(storage.put(TENANT, install_id, "n", item("b", b"x" * 41)), StorageCase.QUOTA_EXCEEDED)
    await storage.put(TENANT, install_id, "n", item("c", b""))
    smaller = Limited(runner_database, total_bytes=10)
    await smaller.put(TENANT, install_id, "n", item("a", b"x" * 59))  # still over what is allowed now, but less
    assert _usage(database_urls, install_id) == (99, 3, 1)


async def test_limits__many_at_once__hold(runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId) -> None:
    storage = Limited(runner_database, keys_per_namespace=3, total_bytes=50)
    keys = [str(number) for number in range(5)]
    await asyncio.gather(*(storage.put(TENANT, install_id, "n", item(key, b"x" * 10)) for key in keys), return_exceptions=True)
    assert _usage(database_urls, install_id) == (30, 3, 1)


async def test_unknown_install__is_denied_for_writes_and_missing_for_reads(runner_database: Database, install_id: InstallId) -> None:
    storage = StorageService(runner_database)
    await _refused(storage.put(TENANT, new_id(), "n", item("k", b"")), StorageCase.DENIED)
    await _refused(storage.get(TENANT, new_id(), "n", "k"), StorageCase.MISSING)
    for malformed in ("", "x", "\0", install_id.upper()):
        await _refused(storage.get(TENANT, malformed, "n", "k"), StorageCase.DENIED)
    for tenant in ("", "*"):
        await _refused(storage.get(tenant, install_id, "n", "k"), StorageCase.DENIED)


async def test_other_tenant_and_other_install__see_and_change_nothing(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    await storage.put(TENANT, install_id, "n", item("k", b"mine"))
    theirs = (await install(admin_database, OTHER_TENANT)).install_id
    for tenant, install_of in ((OTHER_TENANT, install_id), (OTHER_TENANT, theirs), (TENANT, theirs)):
        await _refused(storage.get(tenant, install_of, "n", "k"), StorageCase.MISSING)
        assert await storage.list_entries(tenant, install_of, "n") == ((), None)
        with pytest.raises(StorageRefusalError):
            await storage.delete(tenant, install_of, "n", "k")
    await _refused(storage.put(OTHER_TENANT, install_id, "n", item("k", b"evil")), StorageCase.DENIED)
    await storage.put(OTHER_TENANT, theirs, "n", item("k", b"theirs"))
    assert (await storage.get(TENANT, install_id, "n", "k")).value == b"mine"
    assert _usage(database_urls, install_id) == (4, 1, 1)


async def test_list__pages__lose_and_repeat_nothing(runner_database: Database, install_id: InstallId) -> None:
    storage = StorageService(runner_database)
    keys = [f"k{number:02d}" for number in range(30)] + ["K", "é", "\U0001f600", "~"]
    for key in random.Random(1).sample(keys, len(keys)):
        await storage.put(TENANT, install_id, "n", item(key, key.encode()))
    for limit in (1, 7, 25, 34, 100):
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page, cursor = await storage.list_entries(TENANT, install_id, "n", cursor, limit=limit)
            seen += [entry.key for entry in page]
            if cursor is None:
                break
        assert seen == sorted(keys, key=str.encode), limit


async def test_list__written_and_deleted_meanwhile__still_sees_what_was_there_all_the_time(
    runner_database: Database, install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    for number in range(0, 20, 2):
        await storage.put(TENANT, install_id, "n", item(f"k{number:02d}", b""))
    page, cursor = await storage.list_entries(TENANT, install_id, "n", None, limit=3)
    assert [entry.key for entry in page] == ["k00", "k02", "k04"]
    for gone in ("k04", "k06"):
        await storage.delete(TENANT, install_id, "n", gone)
    await storage.put(TENANT, install_id, "n", item("k03", b""))
    rest, end = await storage.list_entries(TENANT, install_id, "n", cursor, limit=100)
    assert [entry.key for entry in rest] == ["k08", "k10", "k12", "k14", "k16", "k18"]
    assert end is None


async def test_list__foreign_cursor_or_limit__is_invalid(runner_database: Database, install_id: InstallId) -> None:
    storage = StorageService(runner_database)
    for key in "ab":
        await storage.put(TENANT, install_id, "n", item(key, b""))
    _, cursor = await storage.list_entries(TENANT, install_id, "n", None, limit=1)
    assert cursor is not None
    for wrong in ("", "x", "\0", cursor[:-2] + "!!", cursor * 100):
        await _refused(storage.list_entries(TENANT, install_id, "n", wrong), StorageCase.INVALID)
    await _refused(storage.list_entries(TENANT, install_id, "other", cursor), StorageCase.INVALID)
    for limit in (0, 101):
        await _refused(storage.list_entries(TENANT, install_id, "n", None, limit=limit), StorageCase.INVALID)


async def test_expired_record__is_not_there_but_counts_until_replaced(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = Limited(runner_database, keys_per_namespace=1)
    await storage.put(TENANT, install_id, "n", item("k", b"old value"))
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute("update ext_storage_record set ttl_expires_at = now() - interval '1 second'")
    await _refused(storage.get(TENANT, install_id, "n", "k"), StorageCase.MISSING)
    await _refused(storage.delete(TENANT, install_id, "n", "k"), StorageCase.MISSING)
    assert await storage.list_entries(TENANT, install_id, "n") == ((), None)
    await _refused(storage.put(TENANT, install_id, "n", item("k", b"new"), revision=1), StorageCase.CONFLICT)
    assert await storage.put(TENANT, install_id, "n", item("k", b"new"), revision=0) == 1
    assert (await storage.get(TENANT, install_id, "n", "k")).value == b"new"
    assert _usage(database_urls, install_id) == (3, 1, 1)


async def test_uninstall__keeps_or_purges_what_is_stored(
    admin_database: Database, runner_database: Database, install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    service = InstallService(admin_database)
    await storage.put(TENANT, install_id, "n", item("k", b"kept"))
    await service.uninstall(TENANT, install_id, actor="a")
    assert (await install(admin_database)).install_id == install_id
    assert (await storage.get(TENANT, install_id, "n", "k")).value == b"kept"
    await service.uninstall(TENANT, install_id, purge=True, actor="a")
    await _refused(storage.get(TENANT, install_id, "n", "k"), StorageCase.MISSING)
    await _refused(storage.put(TENANT, install_id, "n", item("k", b"")), StorageCase.DENIED)


async def test_database_away__is_internal(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as server:
        migrations.upgrade(server.url(OWNER))
        admin = await Database.connect(server.url(ADMIN), expected_role=ADMIN)
        runner = await Database.connect(server.url(RUNNER), expected_role=RUNNER)
        await publish(admin)
        install_id = (await install(admin)).install_id
        storage = StorageService(runner)
        await storage.put(TENANT, install_id, "n", item("k", b""))
        server.stop()
        async with asyncio.timeout(10):
            await _refused(storage.get(TENANT, install_id, "n", "k"), StorageCase.INTERNAL)
            await _refused(storage.put(TENANT, install_id, "n", item("k", b"")), StorageCase.INTERNAL)
        await runner.aclose()
        await admin.aclose()


async def test_install_locked_by_somebody__is_internal_within_the_deadline(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    await storage.put(TENANT, install_id, "n", item("k", b""))
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute("select from ext_storage_usage for update")
        async with asyncio.timeout(10):
            await _refused(storage.put(TENANT, install_id, "n", item("k", b"x")), StorageCase.INTERNAL)
    assert await storage.put(TENANT, install_id, "n", item("k", b"y")) == 2


async def test_metadata_and_time_to_live__at_and_beyond_their_bounds(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    for metadata in ("", "{}", "x" * 4_096, "ü" * 2_048, "\U0001f600" * 1_024):
        await storage.put(TENANT, install_id, "n", item("k", b"v", metadata=metadata))
        assert (await storage.get(TENANT, install_id, "n", "k")).metadata == metadata
    assert _usage(database_urls, install_id) == (4_097, 1, 1)
    for metadata in ("x" * 4_097, "ü" * 2_048 + "x", "a\0", "\ud800"):
        await _refused(storage.put(TENANT, install_id, "n", item("k", metadata=metadata)), StorageCase.INVALID)
    for ttl in (60, 30 * 86_400):
        before = datetime.now(UTC)
        await storage.put(TENANT, install_id, "n", item("k", ttl_seconds=ttl))
        expires = (await storage.get(TENANT, install_id, "n", "k")).expires_at
        assert expires is not None
        # The server's clock, which is this machine's.
        assert before + timedelta(seconds=ttl - 1) < expires < datetime.now(UTC) + timedelta(seconds=ttl + 1)
    for ttl in (0, 59, 30 * 86_400 + 1, 2**32 - 1):
        await _refused(storage.put(TENANT, install_id, "n", item("k", ttl_seconds=ttl)), StorageCase.INVALID)
    await storage.put(TENANT, install_id, "n", item("k"))
    plain = await storage.get(TENANT, install_id, "n", "k")
    assert (plain.metadata, plain.expires_at, plain.revision) == (None, None, 8)


async def test_put_many__at_and_beyond_its_bounds(
    runner_database: Database, database_urls: Mapping[str, str], install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    largest = [item(f"k{number:02}", b"x" * 65_536) for number in range(8)]
    assert await storage.put_many(TENANT, install_id, "n", largest) == (1,) * 8
    assert (
        await storage.put_many(TENANT, install_id, "n", [item(f"k{number:02}") for number in reversed(range(20))]) == (1,) * 12 + (2,) * 8
    )
    assert await storage.put_many(TENANT, install_id, "n", []) == ()
    before = _usage(database_urls, install_id)
    for items in (
        [item(f"k{number}") for number in range(21)],
        [*largest, item("one", metadata="x")],
        [item("a", b"1"), item("b", b"2"), item("a", b"1")],
        [item("a"), item("b/c")],
        [item("a"), item("b", b"x" * 65_537)],
        [item("a"), item("b", ttl_seconds=1)],
    ):
        await _refused(storage.put_many(TENANT, install_id, "n", items), StorageCase.INVALID)
    await _refused(storage.put_many(TENANT, install_id, "", []), StorageCase.INVALID)
    assert _usage(database_urls, install_id) == before


async def test_pages__of_large_values__end_by_bytes_and_lose_nothing(runner_database: Database, install_id: InstallId) -> None:
    storage = StorageService(runner_database)
    sizes = {f"k{number:02}": dice for number, dice in enumerate([65_536] * 20 + [0, 1, 30_000] * 8)}
    for key, size in sizes.items():
        await storage.put(TENANT, install_id, "n", item(key, b"x" * size, metadata="m" * (size // 16)))
    seen: dict[str, int] = {}
    cursor: str | None = None
    pages = 0
    while True:
        page, cursor = await storage.list_entries(TENANT, install_id, "n", cursor, limit=100)
        pages += 1
        assert sum(len(entry.key) + len(entry.value) + len(entry.metadata or "") for entry in page) <= PAGE_BYTES
        assert not seen.keys() & {entry.key for entry in page}
        seen |= {entry.key: len(entry.value) for entry in page}
        if cursor is None:
            break
    assert seen == sizes
    assert pages == 2
    plain: list[str] = []
    while found := await storage.list_after(TENANT, install_id, "n", plain[-1] if plain else None):
        plain += [entry.key for entry in found]
    assert plain == sorted(sizes)


@pytest.mark.parametrize("prefix", ["%", "_", "\\", "a%", "a", "\U0010ffff", "é", "k" * 256])
async def test_prefix__of_any_characters__is_no_pattern(runner_database: Database, install_id: InstallId, prefix: str) -> None:
    storage = StorageService(runner_database)
    keys = ["%", "%a", "_", "_a", "\\", "\\%", "a", "a%", "ab", "\U0010ffff", "\U0010ffff!", "é", "e\u0301", "k" * 256, "z"]
    await storage.put_many(TENANT, install_id, "n", [item(key) for key in keys])
    page, cursor = await storage.list_entries(TENANT, install_id, "n", prefix=prefix, limit=100)
    assert [entry.key for entry in page] == sorted((key for key in keys if key.startswith(prefix)), key=str.encode)
    assert cursor is None


@pytest.mark.parametrize("prefix", ["a/", "\0", "\ud800", "k" * 257])
async def test_prefix__malformed__is_invalid(runner_database: Database, install_id: InstallId, prefix: str) -> None:
    await _refused(StorageService(runner_database).list_entries(TENANT, install_id, "n", prefix=prefix), StorageCase.INVALID)


async def test_cursor__of_another_install_tenant_namespace_or_prefix__is_invalid(
    admin_database: Database, runner_database: Database, install_id: InstallId
) -> None:
    storage = StorageService(runner_database)
    theirs = (await install(admin_database, OTHER_TENANT)).install_id
    for tenant, of in ((TENANT, install_id), (OTHER_TENANT, theirs)):
        await storage.put_many(tenant, of, "n", [item(key) for key in ("a1", "a2", "b1")])
    _, cursor = await storage.list_entries(TENANT, install_id, "n", limit=1)
    assert cursor is not None
    await _refused(storage.list_entries(OTHER_TENANT, theirs, "n", cursor), StorageCase.INVALID)
    await _refused(storage.list_entries(TENANT, install_id, "m", cursor), StorageCase.INVALID)
    await _refused(storage.list_entries(TENANT, install_id, "n", cursor, prefix="b"), StorageCase.INVALID)
    forged = encode_cursor(theirs, "n", "a1")
    await _refused(storage.list_entries(TENANT, install_id, "n", forged), StorageCase.INVALID)
    for key in ("", "a/b", "\ud800"):
        await _refused(storage.list_entries(TENANT, install_id, "n", encode_cursor(install_id, "n", key)), StorageCase.INVALID)
    page, _ = await storage.list_entries(TENANT, install_id, "n", cursor)
    assert [entry.key for entry in page] == ["a2", "b1"]
