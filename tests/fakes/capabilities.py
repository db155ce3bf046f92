"""Fakes around the broker: a broker of given capabilities, storage in a dictionary, grants, and a plausible value of any shape."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from registry.domain.capabilities import ALWAYS, KNOWN
from registry.domain.ids import ExtensionId, InstallId, TenantId, VersionId
from registry.domain.limits import OPERATOR_DEFAULTS, StorageLimits
from registry.domain.records import StorageEntry, StorageItem
from registry.services.pages import decode_cursor, encode_cursor
from registry.services.storage import StorageCase, StorageRefusalError
from runnerd.capabilities.broker import CALL_SECONDS, CapabilityBroker
from runnerd.capabilities.catalog import FUNCTIONS
from runnerd.capabilities.grants import GuestUser, InvocationGrant
from runnerd.capabilities.handlers import Handler
from runnerd.capabilities.settings import settings_handlers
from runnerd.capabilities.shapes import F64, Bool, Data, Enum, ListOf, Option, Record, Shape, Text, TupleOf, Unsigned
from runnerd.capabilities.unavailable import unavailable_handlers
from runnerd.capabilities.user import user_handlers

INSTALL = InstallId("0197a000-0000-7000-8000-00000000000a")
OTHER_INSTALL = InstallId("0197a000-0000-7000-8000-00000000000b")
USER = GuestUser(
    user_id="u1",
    email="ada@example.com",
    name="Ada",
    user_type="internal",
    client_name="Example",
    client_id="c1",
    additional_fields={"b": "2", "a": "1"},
)


def make_grant(**changes: Any) -> InvocationGrant:
    facts: dict[str, Any] = {
        "tenant_id": TenantId("tenant-a"),
        "install_id": INSTALL,
        "extension_id": ExtensionId("0197a000-0000-7000-8000-000000000001"),
        "extension_name": "com.example.notes",
        "version_id": VersionId("0197a000-0000-7000-8000-000000000002"),
        "request_id": "r1",
        "capabilities": frozenset(KNOWN),
        "declared": frozenset(KNOWN),
        "granted": frozenset(KNOWN),
        "config": {"greeting": "hello", "colour": "blue"},
        "user": USER,
        "deadline": time.monotonic() + 60,
    }
    return InvocationGrant(**facts | changes)


def grant_of(*capabilities: str, **changes: Any) -> InvocationGrant:
    names = frozenset(capabilities)
    return make_grant(capabilities=names | ALWAYS, declared=names, granted=names, **changes)


def make_broker(*capabilities: Mapping[int, Handler], call_seconds: float = CALL_SECONDS) -> CapabilityBroker:
    """A broker of these capabilities, of settings and user, and of nothing behind every other function."""
    given = (settings_handlers(), user_handlers(), *capabilities)
    answered = {number for group in given for number in group}
    others = {function.interface for function in FUNCTIONS if not function.local and function.number not in answered}
    return CapabilityBroker((*given, unavailable_handlers(*others)), call_seconds=call_seconds)


class MemoryStorage:
    """Keeps the promises of StorageService that the capability relies on."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str, str, str], StorageEntry] = {}
        self.error: BaseException | None = None

    async def get(self, tenant_id: TenantId, install_id: InstallId, namespace: str, key: str) -> StorageEntry:
        self._fail()
        try:
            return self.records[tenant_id, install_id, namespace, key]
        except KeyError:
            raise StorageRefusalError(StorageCase.MISSING, "no such record") from None

    async def put(
        self,
        tenant_id: TenantId,
        install_id: InstallId,
        namespace: str,
        item: StorageItem,
        *,
        revision: int | None = None,
        limits: StorageLimits = OPERATOR_DEFAULTS.storage,
    ) -> int:
        self._fail()
        if len(item.value) > limits.value_bytes:
            raise StorageRefusalError(StorageCase.INVALID, "too large")
        place = (tenant_id, install_id, namespace, item.key)
        current = self.records[place].revision if place in self.records else 0
        if revision not in {None, current}:
            raise StorageRefusalError(StorageCase.CONFLICT, "another revision")
        self.records[place] = StorageEntry(
            namespace=namespace, key=item.key, value=item.value, revision=current + 1, metadata=item.metadata
        )
        return current + 1

    async def put_many(
        self,
        tenant_id: TenantId,
        install_id: InstallId,
        namespace: str,
        items: Sequence[StorageItem],
        *,
        limits: StorageLimits = OPERATOR_DEFAULTS.storage,
    ) -> tuple[int, ...]:
        return tuple([await self.put(tenant_id, install_id, namespace, item, limits=limits) for item in items])

    async def delete(self, tenant_id: TenantId, install_id: InstallId, namespace: str, key: str, *, revision: int | None = None) -> None:
        found = await self.get(tenant_id, install_id, namespace, key)
        if revision not in {None, found.revision}:
            raise StorageRefusalError(StorageCase.CONFLICT, "another revision")
        del self.records[tenant_id, install_id, namespace, key]

    async def list_entries(
        self, tenant_id: TenantId, install_id: InstallId, namespace: str, cursor: str | None = None, *, prefix: str = "", limit: int = 25
    ) -> tuple[tuple[StorageEntry, ...], str | None]:
        self._fail()
        after = decode_cursor(cursor, 3)[2] if cursor is not None else ""
        inside = [entry for place, entry in self.records.items() if place[:3] == (tenant_id, install_id, namespace)]
        found = sorted((entry for entry in inside if entry.key > after and entry.key.startswith(prefix)), key=lambda entry: entry.key)
        page = tuple(found[:limit])
        return page, encode_cursor(install_id, namespace, page[-1].key) if len(found) > limit else None

    async def list_after(self, tenant_id: TenantId, install_id: InstallId, namespace: str, after: str | None) -> tuple[StorageEntry, ...]:
        cursor = None if after is None else encode_cursor(install_id, namespace, after)
        return (await self.list_entries(tenant_id, install_id, namespace, cursor))[0]

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


def sample(shape: Shape) -> Any:  # noqa: C901 - one case for each shape
    """Return a value of the shape."""
    match shape:
        case Bool():
            return True
        case Unsigned():
            return 1
        case F64():
            return 1.0
        case Text():
            return "text"
        case Data():
            return b"data"
        case Option():
            return sample(shape.inner)
        case ListOf():
            return [sample(shape.item)]
        case TupleOf():
            return tuple(sample(item) for item in shape.items)
        case Record():
            return {key: sample(field) for key, (_, field) in zip(shape.keys, shape.fields, strict=True)}
        case Enum():
            return shape.cases[0]
