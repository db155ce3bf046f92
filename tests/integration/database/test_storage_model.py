"""Both interfaces of the storage against one dictionary: whatever is done in whatever order, all three say the same, and the kept sums are
the true ones. Time is moved by the table's owner, for one record at a time; what is swept is swept by the role that does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from registry.database import Database
from registry.domain.limits import StorageLimits
from registry.migrations.roles import ADMIN, MAINTENANCE, OWNER, RUNNER, libpq_conninfo
from registry.services.retention import RetentionService
from registry.services.storage import MAX_ITEMS, StorageService
from runnerd.capabilities.catalog import BY_NAME
from runnerd.capabilities.kv import kv_handlers
from runnerd.capabilities.storage import storage_handlers
from tests.fakes.capabilities import grant_of, make_broker
from tests.fakes.registry_rows import TENANT, install, publish

LIMITS = StorageLimits(namespaces=2, keys_per_namespace=3, value_bytes=8, total_bytes=24)
NAMES = st.sampled_from(["a", "b", "c"])
KEYS = st.sampled_from(["k", "k1", "k2", "K", "é", "k%"])
VALUES = st.binary(max_size=10)
METADATA = st.none() | st.sampled_from(["", "{}", "ü"])
TTLS = st.none() | st.sampled_from([59, 60, 3_600])
REVISIONS = st.none() | st.integers(0, 3)
ITEMS = st.fixed_dictionaries({"key": KEYS, "value": VALUES, "metadata": METADATA, "ttl_seconds": TTLS})
GONE = ("missing",)


@dataclass(frozen=True, slots=True)
class Kept:
    value: bytes
    revision: int
    metadata: str | None = None
    ttl_seconds: int | None = None
    is_expired: bool = False

    @property
    def size(self) -> int:
        return len(self.value) + len((self.metadata or "").encode())


class Backend:
    """The real thing, asked from outside any event loop."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._runner = asyncio.Runner()
        self._urls = urls
        self.owner = psycopg.connect(libpq_conninfo(urls[OWNER]), autocommit=True)
        self.database = self.run(Database.connect(urls[RUNNER], expected_role=RUNNER, pool_size=1))
        self.maintenance = self.run(Database.connect(urls[MAINTENANCE], expected_role=MAINTENANCE, pool_size=1))
        install_id = self.run(self._install())
        storage = StorageService(self.database)
        self._broker = make_broker(storage_handlers(storage), kv_handlers(storage))
        self._grant = grant_of("storage.kv", tenant_id=TENANT, install_id=install_id, storage=LIMITS)

    async def _install(self) -> str:
        admin = await Database.connect(self._urls[ADMIN], expected_role=ADMIN, pool_size=1)
        try:
            await publish(admin)
            return (await install(admin)).install_id
        finally:
            await admin.aclose()

    def run(self, awaitable: Any) -> Any:
        return self._runner.run(awaitable)

    def call(self, interface: str, name: str, *arguments: object) -> tuple[Any, str | None]:
        result = self.run(self._broker.call(replace(self._grant, deadline=float("inf")), BY_NAME[interface, name], arguments))
        return result.value, result.error

    def close(self) -> None:
        self.run(self.database.aclose())
        self.run(self.maintenance.aclose())
        self._runner.close()
        self.owner.close()


@contextmanager
def backend_of(urls: Mapping[str, str]) -> Iterator[Backend]:
    backend = Backend(urls)
    try:
        yield backend
    finally:
        backend.close()


class StorageMachine(RuleBasedStateMachine):
    """What guests, time and the sweeper do."""

    backend: Backend

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[tuple[str, str], Kept] = {}

    # --- what the dictionary says ----------------------------------------------------------------------------------------------------

    def _live(self, namespace: str, key: str) -> Kept | None:
        kept = self.model.get((namespace, key))
        return None if kept is None or kept.is_expired else kept

    def _put(self, namespace: str, items: list[dict[str, Any]], expected: int | None) -> list[int] | str:
        """Return the revisions, or the refusal of kv."""
        for item in items:
            if len(item["value"]) > LIMITS.value_bytes or item["ttl_seconds"] == 59:
                return "invalid"
        lives = [self._live(namespace, item["key"]) for item in items]
        revisions = [1 if live is None else live.revision + 1 for live in lives]
        if expected is not None and any(revision - 1 != expected for revision in revisions):
            return "conflict"
        written = {
            (namespace, item["key"]): Kept(item["value"], revision, item["metadata"], item["ttl_seconds"])
            for item, revision in zip(items, revisions, strict=True)
        }
        if self._is_too_much(written):
            self._sweep()
            if self._is_too_much(written):
                return "quota-exceeded"
        self.model |= written
        return revisions

    def _is_too_much(self, written: dict[tuple[str, str], Kept]) -> bool:
        after = self.model | written
        grows = len(after) > len(self.model)
        used, before = (sum(kept.size for kept in records.values()) for records in (after, self.model))
        namespace = next(iter(written))[0]
        return (
            (grows and sum(name == namespace for name, _ in after) > LIMITS.keys_per_namespace)
            or (grows and len({name for name, _ in after}) > LIMITS.namespaces)
            or (used > before and used > LIMITS.total_bytes)
        )

    def _sweep(self) -> int:
        expired = [place for place, kept in self.model.items() if kept.is_expired]
        for place in expired:
            del self.model[place]
        return len(expired)

    # --- what is done to both --------------------------------------------------------------------------------------------------------

    @rule(namespace=NAMES, key=KEYS, value=VALUES, revision=REVISIONS)
    def put(self, namespace: str, key: str, value: bytes, revision: int | None) -> None:
        entry = {"namespace": namespace, "key": key, "value": value, "revision": revision}
        item = {"key": key, "value": value, "metadata": None, "ttl_seconds": None}
        said, error = self.backend.call("alga:extension/storage", "put", entry)
        expected = self._put(namespace, [item], revision)
        if isinstance(expected, str):
            assert error == {"invalid": "denied", "quota-exceeded": "denied"}.get(expected, expected)
        else:
            assert (said, error) == (entry | {"revision": expected[0]}, None)

    @rule(namespace=NAMES, item=ITEMS, revision=REVISIONS, create_only=st.booleans())
    def kv_put(self, namespace: str, item: dict[str, Any], revision: int | None, *, create_only: bool) -> None:
        options = {"expected_revision": revision, "create_only": create_only, **item}
        given = {name: options[name] for name in ("expected_revision", "create_only", "ttl_seconds", "metadata")}
        said, error = self.backend.call("extrunner:host/kv", "put", namespace, item["key"], item["value"], given)
        if create_only and revision:
            assert error == "invalid"
            return
        expected = self._put(namespace, [item], 0 if create_only else revision)
        assert (error if isinstance(expected, str) else [said]) == expected

    @rule(namespace=NAMES, items=st.lists(ITEMS, max_size=4))
    def kv_put_many(self, namespace: str, items: list[dict[str, Any]]) -> None:
        said, error = self.backend.call("extrunner:host/kv", "put-many", namespace, items)
        if len({item["key"] for item in items}) < len(items):
            assert error == "invalid"
        elif not items:
            assert (said, error) == ([], None)
        else:
            expected = self._put(namespace, items, None)
            assert (error if isinstance(expected, str) else said) == expected

    @rule(namespace=NAMES, key=KEYS)
    def get(self, namespace: str, key: str) -> None:
        live = self._live(namespace, key)
        said, error = self.backend.call("alga:extension/storage", "get", namespace, key)
        rich, rich_error = self.backend.call("extrunner:host/kv", "get", namespace, key)
        if live is None:
            assert error == rich_error == "missing"
            return
        assert said == {"namespace": namespace, "key": key, "value": live.value, "revision": live.revision}
        assert (rich["key"], rich["value"], rich["revision"], rich["metadata"]) == (key, live.value, live.revision, live.metadata)
        assert (rich["expires_at"] is None) == (live.ttl_seconds is None)

    @rule(namespace=NAMES, key=KEYS, revision=REVISIONS, plain=st.booleans())
    def delete(self, namespace: str, key: str, revision: int | None, *, plain: bool) -> None:
        live = self._live(namespace, key)
        if plain:
            revision = None
            _, error = self.backend.call("alga:extension/storage", "delete", namespace, key)
        else:
            _, error = self.backend.call("extrunner:host/kv", "delete", namespace, key, revision)
        if live is None:
            assert error == "missing"
        elif revision not in {None, live.revision}:
            assert error == "conflict"
        else:
            assert error is None
            del self.model[namespace, key]

    @rule(namespace=NAMES, prefix=st.none() | st.sampled_from(["", "k", "k%", "é", "z"]), limit=st.integers(1, 4))
    def list_all(self, namespace: str, prefix: str | None, limit: int) -> None:
        inside = sorted(key for space, key in self.model if space == namespace and self._live(namespace, key))
        seen: list[str] = []
        cursor = None
        while True:
            page, error = self.backend.call("extrunner:host/kv", "list", namespace, prefix, limit, cursor)
            assert error is None
            seen += [entry["key"] for entry in page["entries"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
            assert len(page["entries"]) == limit
        assert seen == [key for key in inside if key.startswith(prefix or "")]
        plain, _ = self.backend.call("alga:extension/storage", "list-entries", namespace, None)
        assert [(entry["key"], entry["value"]) for entry in plain] == [(key, self.model[namespace, key].value) for key in inside]

    @rule(namespace=NAMES, key=KEYS)
    def time_passes(self, namespace: str, key: str) -> None:
        kept = self.model.get((namespace, key))
        if kept is not None and kept.ttl_seconds is not None:
            self.backend.owner.execute(
                "update ext_storage_record set ttl_expires_at = now() - interval '1 second' where namespace = %s and key = %s",
                (namespace, key),
            )
            self.model[namespace, key] = replace(kept, is_expired=True)

    @rule()
    def sweep(self) -> None:
        assert self.backend.run(RetentionService(self.backend.maintenance).sweep_storage(batch=2)) == self._sweep()

    @invariant()
    def sums_are_true(self) -> None:
        kept = self.backend.owner.execute(
            "select bytes_used, keys_count, namespaces_count, namespace_keys from ext_storage_usage"
        ).fetchone()
        counts = {name: sum(space == name for space, _ in self.model) for name, _ in self.model}
        assert (kept or (0, 0, 0, {})) == (sum(one.size for one in self.model.values()), len(self.model), len(counts), counts)

    def teardown(self) -> None:
        self.backend.owner.execute("delete from ext_storage_usage")


@pytest.mark.usefixtures("postgres_cluster")
def test_storage_and_kv__any_steps__do_what_a_dictionary_with_limits_would(module_database_urls: Mapping[str, str]) -> None:
    assert MAX_ITEMS > 4
    with backend_of(module_database_urls) as backend:
        machine = type("StorageMachine", (StorageMachine,), {"backend": backend})
        run_state_machine_as_test(
            machine,
            settings=settings(max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)),
        )
