"""Storage against a dictionary: whatever is done in whatever order, both say the same, and the kept sums are the true ones."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.database import Database
from registry.migrations.roles import ADMIN, OWNER, RUNNER, libpq_conninfo
from registry.services.storage import StorageCase, StorageLimits, StorageRefusalError, StorageService
from tests.fakes.registry_rows import TENANT, install, publish

_LIMITS = StorageLimits(namespaces=2, keys_per_namespace=3, value_bytes=8, total_bytes=24)
_NAMES = st.sampled_from(["a", "b", "c"])
_KEYS = st.sampled_from(["k1", "k2", "K", "é"])
_REVISIONS = st.none() | st.integers(0, 3)
_STEPS = st.one_of(
    st.tuples(st.just("put"), _NAMES, _KEYS, st.binary(max_size=10), _REVISIONS),
    st.tuples(st.just("delete"), _NAMES, _KEYS, st.just(b""), _REVISIONS),
    st.tuples(st.just("get"), _NAMES, _KEYS, st.just(b""), st.none()),
    st.tuples(st.just("list"), _NAMES, _KEYS, st.just(b""), st.integers(1, 4)),
)
Model = dict[tuple[str, str], tuple[bytes, int]]


@pytest.fixture(scope="module")
def install_id(module_database_urls: Mapping[str, str]) -> str:
    async def prepare() -> str:
        admin = await Database.connect(module_database_urls[ADMIN], expected_role=ADMIN)
        await publish(admin)
        view = await install(admin)
        await admin.aclose()
        return view.install_id

    return asyncio.run(prepare())


def _expected_put(model: Model, namespace: str, key: str, value: bytes, revision: int | None) -> StorageCase | int:
    if len(value) > _LIMITS.value_bytes:
        return StorageCase.DENIED
    old = model.get((namespace, key))
    current = 0 if old is None else old[1]
    if revision is not None and revision != current:
        return StorageCase.CONFLICT
    after = {**model, (namespace, key): (value, current + 1)}
    total = sum(len(stored) for stored, _ in after.values())
    too_many = (
        len({name for name, _ in after}) > _LIMITS.namespaces
        or sum(name == namespace for name, _ in after) > _LIMITS.keys_per_namespace
        or total > _LIMITS.total_bytes
    )
    return StorageCase.DENIED if too_many else current + 1


async def _step(storage: StorageService, install_id: str, model: Model, step: tuple[str, str, str, bytes, int | None]) -> None:
    action, namespace, key, value, number = step
    old = model.get((namespace, key))
    try:
        if action == "put":
            expected = _expected_put(model, namespace, key, value, number)
            entry = await storage.put(TENANT, install_id, namespace, key, value, number)
            assert entry.revision == expected
            model[namespace, key] = (value, entry.revision)
        elif action == "delete":
            expected = StorageCase.MISSING if old is None else StorageCase.CONFLICT
            await storage.delete(TENANT, install_id, namespace, key, revision=number)
            assert old is not None
            assert number in (None, old[1])
            del model[namespace, key]
        elif action == "get":
            expected = StorageCase.MISSING
            entry = await storage.get(TENANT, install_id, namespace, key)
            assert (entry.value, entry.revision) == old
        else:
            expected = 0
            seen: list[tuple[str, bytes, int]] = []
            cursor: str | None = None
            while True:
                page, cursor = await storage.list_entries(TENANT, install_id, namespace, cursor, number or 1)
                seen += [(entry.key, entry.value, entry.revision) for entry in page]
                if cursor is None:
                    break
            inside = [(name, *stored) for (space, name), stored in model.items() if space == namespace]
            assert seen == sorted(inside, key=lambda row: row[0].encode())
    except StorageRefusalError as refusal:
        assert refusal.case == expected, step  # noqa: PT017 - compared with the model


async def _run(urls: Mapping[str, str], install_id: str, steps: list[tuple[str, str, str, bytes, int | None]]) -> None:
    runner = await Database.connect(urls[RUNNER], expected_role=RUNNER, pool_size=1)
    storage = StorageService(runner, _LIMITS)
    model: Model = {}
    try:
        for step in steps:
            await _step(storage, install_id, model, step)
        with psycopg.connect(libpq_conninfo(urls[OWNER])) as connection:
            kept = connection.execute("select bytes_used, keys_count, namespaces_count from ext_storage_usage").fetchone()
        counted = (sum(len(value) for value, _ in model.values()), len(model), len({name for name, _ in model}))
        assert (kept or (0, 0, 0)) == counted
    finally:
        for namespace, key in model:
            await storage.delete(TENANT, install_id, namespace, key)
        await runner.aclose()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_STEPS, max_size=25))
def test_storage__any_steps__does_what_a_dictionary_with_limits_would(
    module_database_urls: Mapping[str, str], install_id: str, steps: list[tuple[str, str, str, bytes, int | None]]
) -> None:
    asyncio.run(_run(module_database_urls, install_id, steps))
