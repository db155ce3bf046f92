"""alga:extension/storage: values of the install (cap:storage.kv). Tenant and install come from the grant, never from the guest.

The records are those of extrunner:host/kv. This interface writes them as a whole: what is put here has no metadata and no expiry.
"""

from __future__ import annotations

from collections.abc import Mapping

from registry.domain.records import StorageEntry, StorageItem
from registry.services.storage import StorageCase
from runnerd.capabilities.arguments import optional_int, record_of
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named
from runnerd.capabilities.results import HostResult, succeeded
from runnerd.capabilities.stored import ExtensionStorage, typed

_INTERFACE = "alga:extension/storage"
_CASES = {StorageCase.INVALID: StorageCase.DENIED, StorageCase.QUOTA_EXCEEDED: StorageCase.DENIED}
"""`storage-error` has no case for what can never succeed as it is; the execution's record says which it was."""


def storage_handlers(storage: ExtensionStorage) -> Mapping[int, Handler]:
    """Return the handlers, by number of the function."""

    async def get(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, key = map(str, arguments)
        return succeeded(_entry(await storage.get(grant.tenant_id, grant.install_id, namespace, key)))

    async def put(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        entry = record_of(arguments[0])
        namespace, item = str(entry["namespace"]), StorageItem(key=str(entry["key"]), value=bytes(entry["value"]))
        revision = await storage.put(
            grant.tenant_id, grant.install_id, namespace, item, revision=optional_int(entry["revision"]), limits=grant.storage
        )
        return succeeded(_entry(StorageEntry(namespace=namespace, key=item.key, value=item.value, revision=revision)))

    async def delete(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, key = map(str, arguments)
        await storage.delete(grant.tenant_id, grant.install_id, namespace, key)
        return succeeded()

    async def list_entries(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        namespace, after = str(arguments[0]), arguments[1]
        # The guest gets entries and no cursor, so what it hands in is the key of the last entry it has seen; the last page is empty.
        found = await storage.list_after(grant.tenant_id, grant.install_id, namespace, None if after is None else str(after))
        return succeeded([_entry(entry) for entry in found])

    return {
        function_named(_INTERFACE, name).number: typed(handler, cases=_CASES)
        for name, handler in {"get": get, "put": put, "delete": delete, "list-entries": list_entries}.items()
    }


def _entry(entry: StorageEntry) -> dict[str, object]:
    return {"namespace": entry.namespace, "key": entry.key, "value": entry.value, "revision": entry.revision}
