"""extrunner:host/kv: values of the install with metadata, expiry, prefixes and writes of several (cap:storage.kv).

The records are those of alga:extension/storage. Tenant and install come from the grant, never from the guest.
"""

from __future__ import annotations

from collections.abc import Mapping

from registry.domain.records import StorageEntry, StorageItem
from registry.services.storage import PAGE_ENTRIES, StorageCase, StorageRefusalError
from runnerd.capabilities.arguments import list_of, optional_int, optional_text, record_of
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named
from runnerd.capabilities.results import HostResult, succeeded
from runnerd.capabilities.stored import ExtensionStorage, typed

_INTERFACE = "extrunner:host/kv"


def kv_handlers(storage: ExtensionStorage) -> Mapping[int, Handler]:
    """Return the handlers, by number of the function."""

    async def get(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, key = map(str, arguments)
        return succeeded(_entry(await storage.get(grant.tenant_id, grant.install_id, namespace, key)))

    async def put(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, key, value, given = arguments
        options = record_of(given)
        item = _item({"key": key, "value": value, **options})
        revision = _expected(options)
        return succeeded(
            await storage.put(grant.tenant_id, grant.install_id, str(namespace), item, revision=revision, limits=grant.storage)
        )

    async def delete(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, key, revision = arguments
        await storage.delete(grant.tenant_id, grant.install_id, str(namespace), str(key), revision=optional_int(revision))
        return succeeded()

    async def list_page(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, prefix, wanted, cursor = arguments
        limit = optional_int(wanted)
        found, following = await storage.list_entries(
            grant.tenant_id,
            grant.install_id,
            str(namespace),
            optional_text(cursor),
            prefix=optional_text(prefix) or "",
            limit=PAGE_ENTRIES if limit is None else limit,
        )
        return succeeded({"entries": [_entry(entry) for entry in found], "next_cursor": following})

    async def put_many(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, given = arguments
        items = [_item(record_of(item)) for item in list_of(given)]
        return succeeded(list(await storage.put_many(grant.tenant_id, grant.install_id, str(namespace), items, limits=grant.storage)))

    return {
        function_named(_INTERFACE, name).number: typed(handler)
        for name, handler in {"get": get, "put": put, "delete": delete, "list": list_page, "put-many": put_many}.items()
    }


def _expected(options: Mapping[str, object]) -> int | None:
    """Return the revision that the record must have; 0 where it must not be there.

    Raises:
        StorageRefusalError: invalid: it cannot have a revision and not be there.
    """
    revision = optional_int(options["expected_revision"])
    if not options["create_only"]:
        return revision
    if revision:
        raise StorageRefusalError(StorageCase.INVALID, "what is meant to be new has no revision")
    return 0


def _item(fields: Mapping[str, object]) -> StorageItem:
    value = fields["value"]
    if not isinstance(value, bytes):
        message = "a value is bytes"
        raise TypeError(message)
    return StorageItem(
        key=str(fields["key"]),
        value=value,
        metadata=optional_text(fields["metadata"]),
        ttl_seconds=optional_int(fields["ttl_seconds"]),
    )


def _entry(entry: StorageEntry) -> dict[str, object]:
    expires = entry.expires_at
    return {
        "key": entry.key,
        "value": entry.value,
        "metadata": entry.metadata,
        "revision": entry.revision,
        "expires_at": None if expires is None else int(expires.timestamp()),
    }
