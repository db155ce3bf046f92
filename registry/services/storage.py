"""Key-value storage of an install: limits kept under concurrency, revisions, pages that lose and repeat nothing.

Attack it stops: an extension that fills the database (every size and count is bounded, and the sums are kept by each write under a lock,
never recounted), or reads another install's records (tenant and install come from the resolved call, never from the guest).

    StorageRefusalError   one of the four cases that the guest's world knows, with a sentence for the log

missing   there is no such record
conflict  the revision given is not the record's, or the record exists and was meant to be new
denied    the request can never succeed as it is: too large, a limit is used up, a name is malformed, the install is gone
internal  the registry did not answer; the same request may succeed later
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from registry.database import Database, Session
from registry.domain.errors import RefusalError
from registry.domain.ids import InstallId, TenantId, is_tenant_id, is_uuid
from registry.domain.limits import MIB
from registry.domain.records import StorageEntry
from registry.repositories.storage import StorageRepository, StorageUsage, StoredState
from registry.services.pages import decode_cursor, encode_cursor

Result = TypeVar("Result")
MAX_REVISION: Final = 2**63 - 1
MAX_PAGE_ENTRIES: Final = 100


class StorageCase(StrEnum):
    """The cases of the guest's `storage-error`."""

    MISSING = "missing"
    CONFLICT = "conflict"
    DENIED = "denied"
    INTERNAL = "internal"


class StorageRefusalError(Exception):
    """A typed refusal. `case` goes to the guest, `detail` to the log."""

    def __init__(self, case: StorageCase, detail: str) -> None:
        super().__init__(f"{case}: {detail}")
        self.case = case
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLimits:
    """What one install may store (DESIGN §7). Bytes are those of values; keys are bounded by their count and length."""

    namespaces: int = 32
    keys_per_namespace: int = 5_120
    value_bytes: int = 64 * 1024
    total_bytes: int = 256 * MIB
    namespace_characters: int = 128
    key_characters: int = 256


DEFAULT_LIMITS: Final = StorageLimits()


class StorageService:
    """Reads and writes what an install stores. Role ext_runner."""

    def __init__(self, database: Database, limits: StorageLimits = DEFAULT_LIMITS) -> None:
        self._database = database
        self._limits = limits

    async def get(self, tenant_id: TenantId | str, install_id: InstallId | str, namespace: str, key: str) -> StorageEntry:
        """Return a record.

        Raises:
            StorageRefusalError: missing, denied (malformed names), internal.
        """
        self._check_names(namespace, key)

        async def read(session: Session) -> StorageEntry:
            entry = await StorageRepository(session, tenant_id).find(InstallId(install_id), namespace, key)
            if entry is None:
                raise StorageRefusalError(StorageCase.MISSING, "there is no record under this key")
            return entry

        return await self._run(tenant_id, install_id, read)

    async def put(  # noqa: PLR0913, PLR0917 - in the order of the guest's `storage-entry`
        self, tenant_id: TenantId | str, install_id: InstallId | str, namespace: str, key: str, value: bytes, revision: int | None = None
    ) -> StorageEntry:
        """Write a record; its revision begins at 1 and grows by one with each write.

        Args:
            tenant_id: from the resolved call.
            install_id: from the resolved call.
            namespace: 1 to 128 characters without NUL.
            key: 1 to 256 characters without "/" and NUL.
            value: kept as it is.
            revision: None writes in any case, 0 only if there is no record, another number only over the record that has it.

        Raises:
            StorageRefusalError: conflict, denied, internal.
        """
        self._check_names(namespace, key)
        if len(value) > self._limits.value_bytes:
            raise StorageRefusalError(StorageCase.DENIED, f"the value has {len(value)} bytes, {self._limits.value_bytes} are allowed")
        if revision is not None and not 0 <= revision <= MAX_REVISION:
            raise StorageRefusalError(StorageCase.CONFLICT, "no record has this revision")

        async def write(session: Session) -> StorageEntry:
            storage = StorageRepository(session, tenant_id)
            usage = await _locked(storage, InstallId(install_id))
            state = await storage.find_state(InstallId(install_id), namespace, key)
            current = state.revision if state is not None and state.is_live else 0
            if revision is not None and revision != current:
                raise StorageRefusalError(StorageCase.CONFLICT, f"the revision is {current}, not {revision}")
            entry = StorageEntry(namespace=namespace, key=key, value=value, revision=current + 1)
            await storage.put(InstallId(install_id), entry, self._usage_after_put(usage, entry, state))
            return entry

        return await self._run(tenant_id, install_id, write)

    async def delete(
        self, tenant_id: TenantId | str, install_id: InstallId | str, namespace: str, key: str, *, revision: int | None = None
    ) -> None:
        """Delete a record; with `revision` only if it has that one.

        Raises:
            StorageRefusalError: missing, conflict, denied, internal.
        """
        self._check_names(namespace, key)

        async def write(session: Session) -> None:
            storage = StorageRepository(session, tenant_id)
            usage = await _locked(storage, InstallId(install_id))
            state = await storage.find_state(InstallId(install_id), namespace, key)
            if state is None or not state.is_live:
                raise StorageRefusalError(StorageCase.MISSING, "there is no record under this key")
            if revision is not None and revision != state.revision:
                raise StorageRefusalError(StorageCase.CONFLICT, f"the revision is {state.revision}, not {revision}")
            await storage.delete(InstallId(install_id), namespace, key, _usage_after_delete(usage, namespace, state))

        await self._run(tenant_id, install_id, write)

    async def list_entries(
        self, tenant_id: TenantId | str, install_id: InstallId | str, namespace: str, cursor: str | None = None, limit: int = 25
    ) -> tuple[tuple[StorageEntry, ...], str | None]:
        """Return a page of records in the order of their keys, and the cursor of the next one (None after the last).

        The cursor names the last key returned: what was there all the time is seen exactly once, whatever is written or deleted meanwhile.

        Raises:
            StorageRefusalError: denied (malformed namespace, cursor or limit), internal.
        """
        self._check_names(namespace, "-")
        if not 1 <= limit <= MAX_PAGE_ENTRIES:
            raise StorageRefusalError(StorageCase.DENIED, f"a page has 1 to {MAX_PAGE_ENTRIES} records")
        after = None if cursor is None else self._key_of(cursor, namespace)

        async def read(session: Session) -> tuple[StorageEntry, ...]:
            return await StorageRepository(session, tenant_id).list_entries(InstallId(install_id), namespace, after=after, limit=limit + 1)

        found = await self._run(tenant_id, install_id, read)
        page = found[:limit]
        return page, encode_cursor(namespace, page[-1].key) if len(found) > limit else None

    async def _run(self, tenant_id: str, install_id: str, work: Callable[[Session], Awaitable[Result]]) -> Result:
        if not is_tenant_id(tenant_id) or not is_uuid(install_id):
            raise StorageRefusalError(StorageCase.DENIED, "the tenant or install id is malformed")
        try:
            async with self._database.tenant_session(tenant_id) as session:
                return await work(session)
        except RefusalError as exc:
            raise StorageRefusalError(StorageCase.INTERNAL, exc.public_detail) from exc

    def _check_names(self, namespace: str, key: str) -> None:
        if not _is_text(namespace, self._limits.namespace_characters):
            allowed = self._limits.namespace_characters
            raise StorageRefusalError(StorageCase.DENIED, f"a namespace has 1 to {allowed} characters, none of them NUL")
        if not _is_text(key, self._limits.key_characters) or "/" in key:
            allowed = self._limits.key_characters
            raise StorageRefusalError(StorageCase.DENIED, f'a key has 1 to {allowed} characters, none of them "/" or NUL')

    def _key_of(self, cursor: str, namespace: str) -> str:
        try:
            of_namespace, key = decode_cursor(cursor, 2)
        except RefusalError as exc:
            raise StorageRefusalError(StorageCase.DENIED, "the cursor is not one that a page gave") from exc
        if of_namespace != namespace or not _is_text(key, self._limits.key_characters):
            raise StorageRefusalError(StorageCase.DENIED, "the cursor is not one that a page of this namespace gave")
        return key

    def _usage_after_put(self, usage: StorageUsage, entry: StorageEntry, state: StoredState | None) -> StorageUsage:
        """Return the usage that a write leaves.

        Raises:
            StorageRefusalError: denied: a limit is used up. Replacing by something smaller is always possible.
        """
        keys = dict(usage.namespace_keys)
        bytes_used = usage.bytes_used + len(entry.value)
        if state is None:
            keys[entry.namespace] = keys.get(entry.namespace, 0) + 1
            if keys[entry.namespace] > self._limits.keys_per_namespace:
                allowed = self._limits.keys_per_namespace
                raise StorageRefusalError(StorageCase.DENIED, f"a namespace holds {allowed} keys, and this one is full")
            if len(keys) > self._limits.namespaces:
                raise StorageRefusalError(StorageCase.DENIED, f"an install has {self._limits.namespaces} namespaces, and all are in use")
        else:
            bytes_used -= state.size_bytes
        if bytes_used > self._limits.total_bytes and bytes_used > usage.bytes_used:
            raise StorageRefusalError(StorageCase.DENIED, f"an install stores {self._limits.total_bytes} bytes, and they are used up")
        return StorageUsage(bytes_used=bytes_used, keys_count=usage.keys_count + (state is None), namespace_keys=keys)


async def _locked(storage: StorageRepository, install_id: InstallId) -> StorageUsage:
    usage = await storage.lock_usage(install_id)
    if usage is None:
        raise StorageRefusalError(StorageCase.DENIED, "the tenant has no such install")
    return usage


def _usage_after_delete(usage: StorageUsage, namespace: str, state: StoredState) -> StorageUsage:
    keys = dict(usage.namespace_keys)
    remaining = keys.pop(namespace, 1) - 1
    if remaining > 0:
        keys[namespace] = remaining
    return StorageUsage(bytes_used=usage.bytes_used - state.size_bytes, keys_count=usage.keys_count - 1, namespace_keys=keys)


def _is_text(value: str, max_characters: int) -> bool:
    if not 1 <= len(value) <= max_characters or "\0" in value:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
