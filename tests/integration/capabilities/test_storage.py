"""The storage capability over real PostgreSQL, as the role of the daemon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from registry.database import Database, _build_engine
from registry.domain.ids import InstallId
from registry.domain.limits import OPERATOR_DEFAULTS
from registry.services.storage import StorageService
from runnerd.capabilities.catalog import BY_NAME
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.storage import storage_handlers
from tests.fakes.capabilities import grant_of, make_broker
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, install, publish

GET, PUT, DELETE, LIST = (BY_NAME["alga:extension/storage", name] for name in ("get", "put", "delete", "list-entries"))


@pytest.fixture
async def grants(admin_database: Database) -> tuple[InvocationGrant, InvocationGrant]:
    """One extension, installed by two tenants."""
    await publish(admin_database)
    views = [await install(admin_database, tenant) for tenant in (TENANT, OTHER_TENANT)]
    mine, theirs = (grant_of("storage.kv", tenant_id=view.tenant_id, install_id=view.install_id) for view in views)
    return mine, theirs


def entry(key: str = "k", value: bytes = b"value", revision: int | None = None) -> dict[str, object]:
    return {"namespace": "notes", "key": key, "value": value, "revision": revision}


async def test_values_survive_with_their_revisions(runner_database: Database, grants: tuple[InvocationGrant, InvocationGrant]) -> None:
    broker, (mine, _) = make_broker(storage_handlers(StorageService(runner_database))), grants
    value = bytes(range(256))
    assert (await broker.call(mine, PUT, (entry(value=value),))).value == entry(value=value, revision=1)
    assert (await broker.call(mine, GET, ("notes", "k"))).value == entry(value=value, revision=1)
    assert (await broker.call(mine, PUT, (entry(revision=1),))).value == entry(revision=2)
    assert (await broker.call(mine, PUT, (entry(revision=1),))).error == "conflict"
    assert (await broker.call(mine, PUT, (entry(revision=0),))).error == "conflict"
    assert (await broker.call(mine, DELETE, ("notes", "k"))).error is None
    assert (await broker.call(mine, GET, ("notes", "k"))).error == "missing"
    assert (await broker.call(mine, DELETE, ("notes", "k"))).error == "missing"


async def test_a_guest_can_read_everything_page_by_page(runner_database: Database, grants: tuple[InvocationGrant, InvocationGrant]) -> None:
    broker, (mine, _) = make_broker(storage_handlers(StorageService(runner_database))), grants
    keys = sorted(f"key {number:02} ä" for number in range(60))
    for key in keys:
        await broker.call(mine, PUT, (entry(key),))
    seen: list[str] = []
    while page := (await broker.call(mine, LIST, ("notes", seen[-1] if seen else None))).value:
        assert isinstance(page, list)
        seen += [one["key"] for one in page]
    assert seen == keys


async def test_the_other_tenant_reads_and_changes_nothing(
    runner_database: Database, grants: tuple[InvocationGrant, InvocationGrant]
) -> None:
    broker, (mine, theirs) = make_broker(storage_handlers(StorageService(runner_database))), grants
    await broker.call(mine, PUT, (entry(),))
    assert (await broker.call(theirs, GET, ("notes", "k"))).error == "missing"
    assert (await broker.call(theirs, LIST, ("notes", None))).value == []
    assert (await broker.call(theirs, DELETE, ("notes", "k"))).error == "missing"
    # Even a grant that names the other tenant's install: the row is not theirs.
    crossed = grant_of("storage.kv", tenant_id=theirs.tenant_id, install_id=mine.install_id)
    assert (await broker.call(crossed, GET, ("notes", "k"))).error == "missing"
    assert (await broker.call(crossed, PUT, (entry(value=b"theirs"),))).error == "denied"
    assert (await broker.call(mine, GET, ("notes", "k"))).value == entry(revision=1)


@pytest.mark.parametrize(
    ("namespace", "key", "value", "error"),
    [
        ("", "k", b"", "denied"),
        ("n" * 128, "k" * 256, b"", None),
        ("n" * 129, "k", b"", "denied"),
        ("n", "k" * 257, b"", "denied"),
        ("n", "a/b", b"", "denied"),
        ("n", "a\0b", b"", "denied"),
        ("n", "'; drop table ext_storage_record; --", b"", None),
        ("n", "k", bytes(64 * 1024), None),
        ("n", "k", bytes(64 * 1024 + 1), "denied"),
    ],
)
async def test_names_and_sizes_have_bounds(
    runner_database: Database, grants: tuple[InvocationGrant, InvocationGrant], namespace: str, key: str, value: bytes, error: str | None
) -> None:
    broker, (mine, _) = make_broker(storage_handlers(StorageService(runner_database))), grants
    given = {"namespace": namespace, "key": key, "value": value, "revision": None}
    assert (await broker.call(mine, PUT, (given,))).error == error
    assert (await broker.call(mine, GET, (namespace, key))).error == (
        "denied" if error and len(value) == 0 else "missing" if error else None
    )


async def test_a_quota_that_is_used_up_is_told(runner_database: Database, grants: tuple[InvocationGrant, InvocationGrant]) -> None:
    broker = make_broker(storage_handlers(StorageService(runner_database)))
    mine = replace(grants[0], storage=replace(OPERATOR_DEFAULTS.storage, total_bytes=10))
    assert (await broker.call(mine, PUT, (entry("a", b"x" * 10),))).error is None
    refused = await broker.call(mine, PUT, (entry("b", b"x"),))
    assert refused.error == "denied"
    assert refused.denial is not None
    assert (refused.denial["capability"], refused.denial["why"]) == ("cap:storage.kv", "quota_exceeded")


async def test_an_install_that_is_gone_stores_nothing(runner_database: Database) -> None:
    broker = make_broker(storage_handlers(StorageService(runner_database)))
    gone = grant_of("storage.kv", install_id=InstallId("0197a000-0000-7000-8000-0000000000ff"))
    assert (await broker.call(gone, PUT, (entry(),))).error == "denied"


async def test_a_database_that_does_not_answer_is_internal(tmp_path: Path) -> None:
    absent = Database(_build_engine(f"postgresql+psycopg://ext_runner@/none?host={tmp_path}", 1))
    broker = make_broker(storage_handlers(StorageService(absent)))
    try:
        for function, arguments in ((GET, ("notes", "k")), (PUT, (entry(),)), (LIST, ("notes", None))):
            result = await broker.call(grant_of("storage.kv"), function, arguments)
            assert (result.error, result.value, result.denial) == ("internal", None, None)
    finally:
        await absent.aclose()
