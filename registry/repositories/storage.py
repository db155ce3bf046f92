"""What extensions of one tenant store, and how much of it there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import RowMapping, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from registry.database import Session
from registry.domain.ids import InstallId, TenantId
from registry.domain.records import StorageEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUsage:
    """What one install stores now."""

    bytes_used: int
    keys_count: int
    namespace_keys: dict[str, int]
    """Keys in each namespace; a namespace without keys is not in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """What a write must know about the record it replaces."""

    revision: int
    size_bytes: int
    is_live: bool
    """False: it expired and nobody swept it yet. It counts in the usage and for nothing else."""


_LIVE: Final = "(s.ttl_expires_at is null or s.ttl_expires_at > now())"
_KEY: Final = "s.tenant_id = :tenant_id and s.install_id = cast(:install_id as uuid) and s.namespace = :namespace"
_GET: Final = text(f"select s.value, s.revision from ext_storage_record s where {_KEY} and s.key = :key and {_LIVE}")  # noqa: S608 - constants
_LIST: Final = text(
    f"""select s.key, s.value, s.revision from ext_storage_record s
         where {_KEY} and (cast(:after as text) is null or s.key > :after) and {_LIVE}
         order by s.key limit :limit"""  # noqa: S608 - constants
)
_STATE: Final = text(
    f"""select s.revision, s.value_size_bytes + s.metadata_size_bytes as size_bytes, {_LIVE} as is_live
          from ext_storage_record s where {_KEY} and s.key = :key"""  # noqa: S608 - constants
)
_LOCK_USAGE: Final = text(
    """select u.bytes_used, u.keys_count, u.namespace_keys from ext_storage_usage u
        where u.tenant_id = :tenant_id and u.install_id = cast(:install_id as uuid) for update"""
)
_MAKE_USAGE: Final = text(
    "insert into ext_storage_usage (tenant_id, install_id) values (:tenant_id, cast(:install_id as uuid)) on conflict do nothing"
)
_PUT_USAGE: Final = """
    update ext_storage_usage u
       set bytes_used = :bytes_used, keys_count = :keys_count, namespaces_count = :namespaces_count, namespace_keys = :namespace_keys
     where u.tenant_id = :tenant_id and u.install_id = cast(:install_id as uuid)
"""
_PUT: Final = text(
    f"""
with used as ({_PUT_USAGE})
insert into ext_storage_record as s (tenant_id, install_id, namespace, key, value, value_size_bytes, revision)
values (:tenant_id, cast(:install_id as uuid), :namespace, :key, :value, octet_length(:value), :revision)
on conflict (tenant_id, install_id, namespace, key) do update
   set value = excluded.value, value_size_bytes = excluded.value_size_bytes, revision = excluded.revision, metadata = '{{}}',
       metadata_size_bytes = 0, ttl_expires_at = null, updated_at = now()
 where s.tenant_id = :tenant_id
"""  # noqa: S608 - constants
).bindparams(bindparam("namespace_keys", type_=JSONB))
_DELETE: Final = text(
    f"with used as ({_PUT_USAGE}) delete from ext_storage_record s where {_KEY} and s.key = :key"  # noqa: S608 - constants
).bindparams(bindparam("namespace_keys", type_=JSONB))


class StorageRepository:
    """Tables `ext_storage_record` and `ext_storage_usage` of one tenant. Role ext_runner.

    A write locks the install's usage row first (`lock_usage`): writes of one install come one after the other, others do not wait.
    """

    def __init__(self, session: Session, tenant_id: TenantId | str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def find(self, install_id: InstallId, namespace: str, key: str) -> StorageEntry | None:
        """Return a live record."""
        row = await self._first(_GET, install_id=install_id, namespace=namespace, key=key)
        return None if row is None else StorageEntry(namespace=namespace, key=key, value=bytes(row["value"]), revision=row["revision"])

    async def list_entries(self, install_id: InstallId, namespace: str, *, after: str | None, limit: int) -> tuple[StorageEntry, ...]:
        """Return live records in the bytewise order of their keys, beginning after the key `after`."""
        parameters = {"tenant_id": self._tenant_id, "install_id": install_id, "namespace": namespace, "after": after, "limit": limit}
        rows = await self._session.execute(_LIST, parameters)
        return tuple(
            StorageEntry(namespace=namespace, key=row["key"], value=bytes(row["value"]), revision=row["revision"])
            for row in rows.mappings()
        )

    async def lock_usage(self, install_id: InstallId) -> StorageUsage | None:
        """Lock and return an install's usage until the end of the transaction. None if the tenant has no such install."""
        row = await self._first(_LOCK_USAGE, install_id=install_id)
        if row is None:
            try:
                async with self._session.begin_nested():
                    await self._session.execute(_MAKE_USAGE, {"tenant_id": self._tenant_id, "install_id": install_id})
            except IntegrityError:
                return None  # The foreign key: this tenant has no such install.
            row = await self._first(_LOCK_USAGE, install_id=install_id)
        if row is None:
            return None
        return StorageUsage(bytes_used=row["bytes_used"], keys_count=row["keys_count"], namespace_keys=row["namespace_keys"])

    async def find_state(self, install_id: InstallId, namespace: str, key: str) -> StoredState | None:
        """Return what is stored under a key, expired or not.

        Only after `lock_usage`, and a statement of its own, so that it sees what the lock waited for.
        """
        row = await self._first(_STATE, install_id=install_id, namespace=namespace, key=key)
        return None if row is None else StoredState(revision=row["revision"], size_bytes=row["size_bytes"], is_live=row["is_live"])

    async def put(self, install_id: InstallId, entry: StorageEntry, usage: StorageUsage) -> None:
        """Write a record and the usage that then holds. Only after `lock_usage`."""
        values = {"key": entry.key, "namespace": entry.namespace, "value": entry.value, "revision": entry.revision}
        await self._session.execute(_PUT, {**self._usage_parameters(install_id, usage), **values})

    async def delete(self, install_id: InstallId, namespace: str, key: str, usage: StorageUsage) -> None:
        """Delete a record and write the usage that then holds. Only after `lock_usage`."""
        await self._session.execute(_DELETE, {**self._usage_parameters(install_id, usage), "namespace": namespace, "key": key})

    def _usage_parameters(self, install_id: InstallId, usage: StorageUsage) -> dict[str, object]:
        return {
            "tenant_id": self._tenant_id,
            "install_id": install_id,
            "bytes_used": usage.bytes_used,
            "keys_count": usage.keys_count,
            "namespaces_count": len(usage.namespace_keys),
            "namespace_keys": usage.namespace_keys,
        }

    async def _first(self, statement: TextClause, **parameters: object) -> RowMapping | None:
        return (await self._session.execute(statement, {"tenant_id": self._tenant_id, **parameters})).mappings().first()
