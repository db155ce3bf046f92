"""Events of every tenant that are old enough to go. Role ext_maintenance, which sees their age and never their content."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text

from registry.database import Session

_DELETE: Final = text(
    """
delete from extension_event e
 using (select o.tenant_id, o.id from extension_event o
         where o.published_at < now() - make_interval(days => :days) order by o.published_at limit :limit) as old
 where e.tenant_id = old.tenant_id and e.id = old.id
"""
)


class EventRetentionRepository:
    """Table `extension_event`, across tenants by a policy that names the role."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def delete_older_than(self, days: int, *, limit: int) -> int:
        """Delete the oldest events beyond an age, `limit` at most; return how many."""
        return (await self._session.execute(_DELETE, {"days": days, "limit": limit})).rowcount
