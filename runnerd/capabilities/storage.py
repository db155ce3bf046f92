"""alga:extension/storage: values of the install (cap:storage.kv). Tenant and install come from the grant, never from the guest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from registry.domain.ids import InstallId, TenantId
from registry.domain.records import StorageEntry
from registry.services.pages import encode_cursor
from registry.services.storage import StorageCase, StorageRefusalError
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named
from runnerd.capabilities.results import HostResult, failed, succeeded

_LOG = logging.getLogger(__name__)
_INTERFACE = "alga:extension/storage"
PAGE_ENTRIES = 25
"""With values of 64 KiB a page stays below the 2 MiB that the ordinary call path carries (N4)."""


class ExtensionStorage(Protocol):
    """What is asked of `registry.services.storage.StorageService`; it raises StorageRefusalError."""

    async def get(self, tenant_id: TenantId, install_id: InstallId, namespace: str, key: str) -> StorageEntry:
        """Return a record."""
        ...

    async def put(  # noqa: PLR0913 - the service's own
        self, tenant_id: TenantId, install_id: InstallId, namespace: str, key: str, *, value: bytes, revision: int | None = None
    ) -> StorageEntry:
        """Write a record."""
        ...

    async def delete(self, tenant_id: TenantId, install_id: InstallId, namespace: str, key: str) -> None:
        """Delete a record."""
        ...

    async def list_entries(
        self, tenant_id: TenantId, install_id: InstallId, namespace: str, cursor: str | None = None, limit: int = PAGE_ENTRIES
    ) -> tuple[tuple[StorageEntry, ...], str | None]:
        """Return a page of records and the cursor of the next."""
        ...


def storage_handlers(storage: ExtensionStorage) -> Mapping[int, Handler]:
    """Return the handlers, by number of the function."""

    async def get(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, key = map(str, arguments)
        return succeeded(_entry(await storage.get(grant.tenant_id, grant.install_id, namespace, key)))

    async def put(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        (entry,) = arguments
        namespace, key, value, revision = _parts(entry)
        stored = await storage.put(grant.tenant_id, grant.install_id, namespace, key, value=value, revision=revision)
        return succeeded(_entry(stored))

    async def delete(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, key = map(str, arguments)
        await storage.delete(grant.tenant_id, grant.install_id, namespace, key)
        return succeeded()

    async def list_entries(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, after = str(arguments[0]), arguments[1]
        # The guest gets entries and no cursor, so what it hands in is the key of the last entry it has seen.
        cursor = None if after is None else encode_cursor(namespace, str(after))
        entries, _ = await storage.list_entries(grant.tenant_id, grant.install_id, namespace, cursor, limit=PAGE_ENTRIES)
        return succeeded([_entry(entry) for entry in entries])

    return {
        function_named(_INTERFACE, name).number: _typed(handler)
        for name, handler in {"get": get, "put": put, "delete": delete, "list-entries": list_entries}.items()
    }


def _typed(handler: Callable[[InvocationGrant, tuple[object, ...]], Coroutine[Any, Any, HostResult]]) -> Handler:
    """Turn the service's refusals into cases of the guest's `storage-error`."""

    async def answer(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        try:
            return await handler(grant, arguments)
        except StorageRefusalError as refusal:
            level = logging.WARNING if refusal.case is StorageCase.INTERNAL else logging.DEBUG
            _LOG.log(level, "storage refused: %s", refusal.detail, extra={"tenant_id": grant.tenant_id, "install_id": grant.install_id})
            return failed(refusal.case)

    return answer


def _entry(entry: StorageEntry) -> dict[str, object]:
    return {"namespace": entry.namespace, "key": entry.key, "value": entry.value, "revision": entry.revision}


def _parts(entry: object) -> tuple[str, str, bytes, int | None]:
    if not isinstance(entry, Mapping):
        message = "a storage-entry is a record"
        raise TypeError(message)
    revision = entry["revision"]
    return str(entry["namespace"]), str(entry["key"]), bytes(entry["value"]), None if revision is None else int(revision)
