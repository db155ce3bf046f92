"""What the two interfaces of the storage share: the service behind them, and how its refusals are answered, logged and explained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from registry.domain.ids import InstallId, TenantId
from registry.domain.limits import StorageLimits
from registry.domain.records import StorageEntry, StorageItem
from registry.services.storage import PAGE_ENTRIES, StorageCase, StorageRefusalError
from runnerd.capabilities.denials import explain_storage_refusal
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, log_refusal
from runnerd.capabilities.results import HostResult

_LOG = logging.getLogger(__name__)


class ExtensionStorage(Protocol):
    """What is asked of `registry.services.storage.StorageService`; it raises StorageRefusalError."""

    async def get(self, tenant_id: TenantId, install_id: InstallId, namespace: str, key: str) -> StorageEntry:
        """Return a record."""
        ...

    async def put(  # noqa: PLR0913 - the service's own
        self,
        tenant_id: TenantId,
        install_id: InstallId,
        namespace: str,
        item: StorageItem,
        *,
        revision: int | None = None,
        limits: StorageLimits = ...,
    ) -> int:
        """Write a record and return its revision."""
        ...

    async def put_many(
        self, tenant_id: TenantId, install_id: InstallId, namespace: str, items: Sequence[StorageItem], *, limits: StorageLimits = ...
    ) -> tuple[int, ...]:
        """Write records, all or none, and return their revisions."""
        ...

    async def delete(self, tenant_id: TenantId, install_id: InstallId, namespace: str, key: str, *, revision: int | None = None) -> None:
        """Delete a record."""
        ...

    async def list_entries(  # noqa: PLR0913 - the service's own
        self,
        tenant_id: TenantId,
        install_id: InstallId,
        namespace: str,
        cursor: str | None = None,
        *,
        prefix: str = "",
        limit: int = PAGE_ENTRIES,
    ) -> tuple[tuple[StorageEntry, ...], str | None]:
        """Return a page of records and the cursor of the next."""
        ...

    async def list_after(self, tenant_id: TenantId, install_id: InstallId, namespace: str, after: str | None) -> tuple[StorageEntry, ...]:
        """Return a page of records that begins after a key."""
        ...


def typed(
    handler: Callable[[InvocationGrant, tuple[object, ...]], Coroutine[Any, Any, HostResult]],
    *,
    cases: Mapping[StorageCase, StorageCase] | None = None,
) -> Handler:
    """Turn the service's refusals into cases of the guest's error.

    Args:
        handler: may raise StorageRefusalError.
        cases: what the guest's error says for a case that it does not have.
    """

    async def answer(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        try:
            return await handler(grant, arguments)
        except StorageRefusalError as refusal:
            log_refusal(_LOG, "storage refused: %s", refusal, grant)
            case = refusal.case if cases is None else cases.get(refusal.case, refusal.case)
            # What the guest is told to be denied, or cannot mend by itself, is explained to those who can.
            is_explained = case is StorageCase.DENIED or case is StorageCase.QUOTA_EXCEEDED
            return HostResult(error=case, denial=explain_storage_refusal(refusal.case, refusal.detail) if is_explained else None)

    return answer
