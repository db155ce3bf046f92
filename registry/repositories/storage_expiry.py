"""Records of every tenant that have expired. Role ext_maintenance, which sees their names and times and never what is in them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import text

from registry.database import Session
from registry.domain.ids import InstallId, TenantId

_OVERDUE: Final = text(
    """
select distinct o.tenant_id, o.install_id::text as install_id
  from (select r.tenant_id, r.install_id from ext_storage_record r
         where r.ttl_expires_at <= now()
           and not exists (select from unnest(cast(:tenants as text[]), cast(:installs as uuid[])) b (tenant_id, install_id)
                            where b.tenant_id = r.tenant_id and b.install_id = r.install_id)
         order by r.ttl_expires_at limit :limit) o
"""
)
# An install that is being written to is left for the next time, and so is one that somebody else clears.
_CLEAR: Final = text(
    """
select extrunner_storage_clear(l.tenant_id, l.install_id, :most) as cleared
  from (select u.tenant_id, u.install_id from ext_storage_usage u
         where u.tenant_id = :tenant_id and u.install_id = cast(:install_id as uuid) for update skip locked) l
"""
)


class StorageExpiryRepository:
    """Tables `ext_storage_record` and `ext_storage_usage`, across tenants by policies that name the role."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def list_overdue(self, *, limit: int, without: Collection[tuple[TenantId, InstallId]]) -> tuple[tuple[TenantId, InstallId], ...]:
        """Return the installs that the records belong to that expired first, `limit` records at most, but for the installs `without`."""
        left_out = {"tenants": [tenant_id for tenant_id, _ in without], "installs": [install_id for _, install_id in without]}
        rows = await self._session.execute(_OVERDUE, {"limit": limit, **left_out})
        return tuple((TenantId(row["tenant_id"]), InstallId(row["install_id"])) for row in rows.mappings())

    async def clear(self, tenant_id: TenantId, install_id: InstallId, *, most: int) -> int:
        """Delete expired records of an install, `most` at most, and keep its sums; return how many."""
        rows = await self._session.execute(_CLEAR, {"tenant_id": tenant_id, "install_id": install_id, "most": most})
        return rows.scalar_one_or_none() or 0
