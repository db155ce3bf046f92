"""Key-value storage of an install: limits kept under concurrency, revisions, expiry, pages that lose and repeat nothing.

Attack it stops: an extension that fills the database (every size and count is bounded, and the sums are kept by each write under a lock,
never recounted), or reads another install's records (tenant and install come from the resolved call, never from the guest).

    StorageRefusalError   one of the cases that guests know, with a sentence for the log

missing         there is no such record (any more)
conflict        the revision given is not the record's, or the record exists and was meant to be new
invalid         a name, size, time or cursor breaks a rule; the request can never succeed as it is
quota-exceeded  the install would store more than it may
denied          the install is gone
internal        the registry did not answer. A read did nothing; of a write nobody knows, and revisions tell
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NoReturn, TypeVar

from registry.database import Database
from registry.domain.errors import RefusalError
from registry.domain.ids import InstallId, TenantId, is_tenant_id, is_uuid
from registry.domain.limits import OPERATOR_DEFAULTS, StorageLimits
from registry.domain.records import StorageEntry, StorageItem
from registry.repositories.storage import StorageRepository
from registry.services.pages import decode_cursor, encode_cursor
from registry.services.turns import InstallTurns

Result = TypeVar("Result")
MAX_REVISION: Final = 2**63 - 1
NAMESPACE_CHARACTERS: Final = 128
KEY_CHARACTERS: Final = 256
METADATA_BYTES: Final = 4_096
TTL_SECONDS: Final = range(60, 30 * 24 * 3_600 + 1)
"""A minute to thirty days."""
MAX_ITEMS: Final = 20
MAX_ITEMS_BYTES: Final = 512 * 1024
"""Values and metadata of one write together."""
PAGE_ENTRIES: Final = 25
MAX_PAGE_ENTRIES: Final = 100
PAGE_BYTES: Final = 1024 * 1024
"""Keys, values and metadata of a page: half of what the ordinary call path carries (N4), where a MiB costs a guest 0.1 s of processor."""


class StorageCase(StrEnum):
    """The cases of the guests' errors: `kv-error` has all of them, `storage-error` all but invalid and quota-exceeded."""

    MISSING = "missing"
    CONFLICT = "conflict"
    INVALID = "invalid"
    QUOTA_EXCEEDED = "quota-exceeded"
    DENIED = "denied"
    INTERNAL = "internal"


class StorageRefusalError(Exception):
    """A typed refusal. `case` goes to the guest, `detail`, which repeats nothing of the guest's, to the log."""

    def __init__(self, case: StorageCase, detail: str) -> None:
        super().__init__(f"{case}: {detail}")
        self.case = case
        self.detail = detail


_REFUSALS: Final[Mapping[str, tuple[StorageCase, str]]] = {
    "gone": (StorageCase.DENIED, "the tenant has no such install"),
    "missing": (StorageCase.MISSING, "there is no record under this key"),
    "conflict": (StorageCase.CONFLICT, "the record has another revision than the one given"),
    "namespaces": (StorageCase.QUOTA_EXCEEDED, "all namespaces that the install may have are in use"),
    "keys": (StorageCase.QUOTA_EXCEEDED, "the namespace holds as many keys as it may"),
    "bytes": (StorageCase.QUOTA_EXCEEDED, "the install stores as many bytes as it may"),
}


class StorageService:
    """Reads and writes what an install stores. Role ext_runner; used from one event loop. An operation is one round trip to the database.

    Args:
        database: of role ext_runner.
        writes_per_install: at once; well below the connections of `database`.
    """

    def __init__(self, database: Database, *, writes_per_install: int = 4) -> None:
        self._database = database
        self._turns = InstallTurns(writes_per_install)

    async def get(self, tenant_id: TenantId | str, install_id: InstallId | str, namespace: str, key: str) -> StorageEntry:
        """Return a record.

        Raises:
            StorageRefusalError: missing, invalid (names), denied, internal.
        """
        _check_names(namespace, key)
        found = await self._ask(tenant_id, install_id, lambda storage: storage.find(InstallId(install_id), namespace, key))
        return _refuse("missing") if found is None else found

    async def put(  # noqa: PLR0913 - a record, and when it may be written
        self,
        tenant_id: TenantId | str,
        install_id: InstallId | str,
        namespace: str,
        item: StorageItem,
        *,
        revision: int | None = None,
        limits: StorageLimits = OPERATOR_DEFAULTS.storage,
    ) -> int:
        """Write a record as a whole and return its revision, which begins at 1 and grows by one with each write.

        Args:
            tenant_id: from the resolved call.
            install_id: from the resolved call.
            namespace: 1 to 128 characters without NUL.
            item: key of 1 to 256 characters without "/" and NUL; value and metadata, kept as they are; time to live.
            revision: None writes in any case, 0 only if there is no record, another number only over the record that has it.
            limits: of the install.

        Raises:
            StorageRefusalError: conflict, invalid, quota-exceeded, denied, internal.
        """
        (written,) = await self._put(tenant_id, install_id, namespace, (item,), revision=revision, limits=limits)
        return written

    async def put_many(
        self,
        tenant_id: TenantId | str,
        install_id: InstallId | str,
        namespace: str,
        items: Sequence[StorageItem],
        *,
        limits: StorageLimits = OPERATOR_DEFAULTS.storage,
    ) -> tuple[int, ...]:
        """Write records, all or none, and return their revisions in the same order. At most 20 with 512 KiB, no key twice.

        Raises:
            StorageRefusalError: invalid, quota-exceeded, denied, internal.
        """
        if len(items) > MAX_ITEMS or len({item.key for item in items}) < len(items):
            raise StorageRefusalError(StorageCase.INVALID, f"one write has at most {MAX_ITEMS} records, each under a key of its own")
        if not items:
            _check_names(namespace)
            return ()
        return await self._put(tenant_id, install_id, namespace, items, revision=None, limits=limits)

    async def delete(
        self, tenant_id: TenantId | str, install_id: InstallId | str, namespace: str, key: str, *, revision: int | None = None
    ) -> None:
        """Delete a record; with `revision` only if it has that one.

        Raises:
            StorageRefusalError: missing, conflict, invalid (names), denied, internal.
        """
        _check_names(namespace, key)
        expected = _revision(revision)
        async with self._turns.of(tenant_id, install_id):
            refusal = await self._ask(
                tenant_id, install_id, lambda storage: storage.delete(InstallId(install_id), namespace, key, expected=expected)
            )
        if refusal is not None:
            _refuse(refusal)

    async def list_entries(  # noqa: PLR0913 - which records
        self,
        tenant_id: TenantId | str,
        install_id: InstallId | str,
        namespace: str,
        cursor: str | None = None,
        *,
        prefix: str = "",
        limit: int = PAGE_ENTRIES,
    ) -> tuple[tuple[StorageEntry, ...], str | None]:
        """Return a page of records in the order of their keys, and the cursor of the next one (None after the last).

        The cursor names the last key returned: what was there all the time is seen exactly once, whatever is written or deleted meanwhile.
        A page has fewer records than `limit` where they would be more than 1 MiB, but one at least.

        Raises:
            StorageRefusalError: invalid (namespace, prefix, limit, or a cursor of another install, namespace or prefix), denied, internal.
        """
        _check_names(namespace)
        if prefix and not _is_key(prefix):
            raise StorageRefusalError(StorageCase.INVALID, "a prefix is the beginning of a key")
        if not 1 <= limit <= MAX_PAGE_ENTRIES:
            raise StorageRefusalError(StorageCase.INVALID, f"a page has 1 to {MAX_PAGE_ENTRIES} records")
        after = "" if cursor is None else _key_of(cursor, install_id, namespace, prefix)
        return await self._page(tenant_id, install_id, namespace, after=after, prefix=prefix, limit=limit)

    async def list_after(
        self, tenant_id: TenantId | str, install_id: InstallId | str, namespace: str, after: str | None
    ) -> tuple[StorageEntry, ...]:
        """Return a page of records that begins after a key, there or not: for those who have the last key and no cursor.

        Raises:
            StorageRefusalError: invalid (names), denied, internal.
        """
        _check_names(namespace, *(() if after is None else (after,)))
        page, _ = await self._page(tenant_id, install_id, namespace, after=after or "", prefix="", limit=PAGE_ENTRIES)
        return page

    async def _page(  # noqa: PLR0913 - which records
        self, tenant_id: str, install_id: str, namespace: str, *, after: str, prefix: str, limit: int
    ) -> tuple[tuple[StorageEntry, ...], str | None]:
        page, has_more = await self._ask(
            tenant_id,
            install_id,
            lambda storage: storage.list_entries(
                InstallId(install_id), namespace, after=after, prefix=prefix, limit=limit, most_bytes=PAGE_BYTES
            ),
        )
        return page, encode_cursor(install_id, namespace, page[-1].key) if has_more else None

    async def _put(  # noqa: PLR0913 - as the two that call it
        self, tenant_id: str, install_id: str, namespace: str, items: Sequence[StorageItem], *, revision: int | None, limits: StorageLimits
    ) -> tuple[int, ...]:
        _check_names(namespace, *(item.key for item in items))
        for item in items:
            _check_item(item, limits)
        if sum(map(_size, items)) > MAX_ITEMS_BYTES:
            raise StorageRefusalError(StorageCase.INVALID, f"one write has at most {MAX_ITEMS_BYTES} bytes")
        expected = _revision(revision)
        async with self._turns.of(tenant_id, install_id):
            answer = await self._ask(
                tenant_id,
                install_id,
                lambda storage: storage.put(InstallId(install_id), namespace, items, expected=expected, limits=limits),
            )
        return _refuse(answer.refusal) if answer.refusal is not None else answer.revisions

    async def _ask(self, tenant_id: str, install_id: str, ask: Callable[[StorageRepository], Awaitable[Result]]) -> Result:
        if not is_tenant_id(tenant_id) or not is_uuid(install_id):
            raise StorageRefusalError(StorageCase.DENIED, "the tenant or install id is malformed")
        try:
            return await ask(StorageRepository(self._database.statements(tenant_id), tenant_id))
        except RefusalError as exc:
            raise StorageRefusalError(StorageCase.INTERNAL, exc.public_detail) from exc


def _refuse(refusal: str) -> NoReturn:
    raise StorageRefusalError(*_REFUSALS[refusal])


def _revision(revision: int | None) -> int | None:
    if revision is not None and not 0 <= revision <= MAX_REVISION:
        raise StorageRefusalError(StorageCase.CONFLICT, "no record has this revision")
    return revision


def _check_names(namespace: str, *keys: str) -> None:
    if not _is_text(namespace, NAMESPACE_CHARACTERS):
        raise StorageRefusalError(StorageCase.INVALID, f"a namespace has 1 to {NAMESPACE_CHARACTERS} characters, none of them NUL")
    if not all(map(_is_key, keys)):
        raise StorageRefusalError(StorageCase.INVALID, f'a key has 1 to {KEY_CHARACTERS} characters, none of them "/" or NUL')


def _check_item(item: StorageItem, limits: StorageLimits) -> None:
    if len(item.value) > limits.value_bytes:
        raise StorageRefusalError(StorageCase.INVALID, f"the value has {len(item.value)} bytes, {limits.value_bytes} are allowed")
    if item.metadata and not (_is_text(item.metadata, METADATA_BYTES) and len(item.metadata.encode()) <= METADATA_BYTES):
        raise StorageRefusalError(StorageCase.INVALID, f"metadata has at most {METADATA_BYTES} bytes of text, none of them NUL")
    if item.ttl_seconds is not None and item.ttl_seconds not in TTL_SECONDS:
        raise StorageRefusalError(StorageCase.INVALID, f"a record lives for {TTL_SECONDS[0]} to {TTL_SECONDS[-1]} seconds, or for good")


def _size(item: StorageItem) -> int:
    return len(item.value) + len((item.metadata or "").encode())


def _key_of(cursor: str, install_id: str, namespace: str, prefix: str) -> str:
    try:
        of_install, of_namespace, key = decode_cursor(cursor, 3)
    except RefusalError as exc:
        raise StorageRefusalError(StorageCase.INVALID, "the cursor is not one that a page gave") from exc
    if (of_install, of_namespace) != (install_id, namespace) or not _is_key(key) or not key.startswith(prefix):
        raise StorageRefusalError(StorageCase.INVALID, "the cursor is not one that a page of this list gave")
    return key


def _is_key(key: str) -> bool:
    return "/" not in key and _is_text(key, KEY_CHARACTERS)


def _is_text(value: str, max_characters: int) -> bool:
    if not 1 <= len(value) <= max_characters or "\0" in value:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
