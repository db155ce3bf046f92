"""What extensions of one tenant store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import RowMapping, TextClause, text

from registry.database import Session, TenantStatements
from registry.domain.ids import InstallId, TenantId
from registry.domain.limits import StorageLimits
from registry.domain.records import StorageEntry, StorageItem


@dataclass(frozen=True, slots=True, kw_only=True)
class PutAnswer:
    """What became of a write."""

    refusal: str | None
    """None, "gone", "conflict", "namespaces", "keys" or "bytes"."""
    revisions: tuple[int, ...]
    """In the order of what was written; empty where nothing was."""


_LIVE: Final = "(s.ttl_expires_at is null or s.ttl_expires_at > now())"
_NAMESPACE: Final = "s.tenant_id = :tenant_id and s.install_id = cast(:install_id as uuid) and s.namespace = :namespace"
_COLUMNS: Final = "s.key, s.value, s.revision, s.metadata, s.ttl_expires_at"
_FIND: Final = text(f"select {_COLUMNS} from ext_storage_record s where {_NAMESPACE} and s.key = :key and {_LIVE}")  # noqa: S608 - constants
_LIST: Final = text(
    f"""
select p.key, p.value, p.revision, p.metadata, p.ttl_expires_at, p.found
  from (select s.key, s.value, s.revision, s.metadata, s.ttl_expires_at, count(*) over () as found,
               row_number() over (order by s.key) as position,
               sum(s.value_size_bytes + s.metadata_size_bytes + octet_length(s.key)) over (order by s.key) as bytes
          from (select {_COLUMNS}, s.value_size_bytes, s.metadata_size_bytes
                  from ext_storage_record s
                 where {_NAMESPACE} and s.key > :after and s.key >= :least and s.key < :beyond and {_LIVE}
                 order by s.key limit :limit + 1) s) p
 where p.position = 1 or (p.position <= :limit and p.bytes <= :most_bytes)
 order by p.key
"""  # noqa: S608 - constants
)
_PUT: Final = text(
    """select p.refusal, p.revisions
         from extrunner_storage_put(:tenant_id, cast(:install_id as uuid), :namespace, cast(:keys as text[]), cast(:values as bytea[]),
                                    cast(:metadata as text[]), cast(:ttls as integer[]), cast(:expected as bigint), :namespaces, :most_keys,
                                    :most_bytes) p"""
)
_DELETE: Final = text(
    """select extrunner_storage_delete(:tenant_id, cast(:install_id as uuid), :namespace, :key, cast(:expected as bigint)) as refusal"""
)
_AFTER_EVERY_KEY: Final = "\U0010ffff" * 257
"""One character more than a key can have."""
_LAST_CHARACTER: Final = 0x10FFFF
_SURROGATES: Final = range(0xD800, 0xE000)


class StorageRepository:
    """Table `ext_storage_record` of one tenant, and through its functions `ext_storage_usage`. Role ext_runner.

    Each method is one statement, and whole by itself: it needs no transaction around it.
    """

    def __init__(self, session: Session | TenantStatements, tenant_id: TenantId | str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def find(self, install_id: InstallId, namespace: str, key: str) -> StorageEntry | None:
        """Return a live record."""
        rows = await self._rows(_FIND, {"install_id": install_id, "namespace": namespace, "key": key})
        return _entry(namespace, rows[0]) if rows else None

    async def list_entries(  # noqa: PLR0913 - what a page is
        self, install_id: InstallId, namespace: str, *, after: str, prefix: str, limit: int, most_bytes: int
    ) -> tuple[tuple[StorageEntry, ...], bool]:
        """Return live records in the bytewise order of their keys, beginning after the key `after`, and whether there are more.

        Args:
            install_id: whose.
            namespace: in which.
            after: "" begins with the first.
            prefix: of the keys; "" for all.
            limit: records at most.
            most_bytes: of keys, values and metadata together; one record is returned whatever its size.
        """
        rows = await self._rows(
            _LIST,
            {
                "install_id": install_id,
                "namespace": namespace,
                "after": after,
                "least": prefix,
                "beyond": _end_of(prefix),
                "limit": limit,
                "most_bytes": most_bytes,
            },
        )
        return tuple(_entry(namespace, row) for row in rows), bool(rows) and len(rows) < rows[0]["found"]

    async def put(
        self, install_id: InstallId, namespace: str, items: Sequence[StorageItem], *, expected: int | None, limits: StorageLimits
    ) -> PutAnswer:
        """Write records under different keys, all or none; `expected` is the revision of each before, 0 where it is not there."""
        rows = await self._rows(
            _PUT,
            {
                "install_id": install_id,
                "namespace": namespace,
                "keys": [item.key for item in items],
                "values": [item.value for item in items],
                "metadata": [item.metadata for item in items],
                "ttls": [item.ttl_seconds for item in items],
                "expected": expected,
                "namespaces": limits.namespaces,
                "most_keys": limits.keys_per_namespace,
                "most_bytes": limits.total_bytes,
            },
        )
        return PutAnswer(refusal=rows[0]["refusal"], revisions=tuple(rows[0]["revisions"] or ()))

    async def delete(self, install_id: InstallId, namespace: str, key: str, *, expected: int | None) -> str | None:
        """Delete a live record. Return None, or why not: "missing" or "conflict"."""
        rows = await self._rows(_DELETE, {"install_id": install_id, "namespace": namespace, "key": key, "expected": expected})
        refusal: str | None = rows[0]["refusal"]
        return refusal

    async def _rows(self, statement: TextClause, parameters: Mapping[str, object]) -> Sequence[RowMapping]:
        return (await self._session.execute(statement, {"tenant_id": self._tenant_id, **parameters})).mappings().all()


def _entry(namespace: str, row: RowMapping) -> StorageEntry:
    return StorageEntry(
        namespace=namespace,
        key=row["key"],
        value=bytes(row["value"]),
        revision=row["revision"],
        metadata=row["metadata"],
        expires_at=row["ttl_expires_at"],
    )


def _end_of(prefix: str) -> str:
    """Return the least text, in the order of bytes, that is beyond everything that begins with `prefix`."""
    shortened = prefix.rstrip(chr(_LAST_CHARACTER))
    if not shortened:
        return _AFTER_EVERY_KEY
    following = ord(shortened[-1]) + 1
    return shortened[:-1] + chr(_SURROGATES.stop if following in _SURROGATES else following)
