"""Reading the names of extensions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import RowMapping, text

from registry.database import Session
from registry.domain.ids import ExtensionId
from registry.repositories.searchable import text_or_nothing, uuid_or_none


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionView:
    """One extension that has a published version."""

    extension_id: ExtensionId
    name: str
    publisher: str
    display_name: str | None
    description: str | None
    created_at: datetime


_SELECT: Final = """
select r.id::text as extension_id, r.name, r.publisher, r.display_name, r.description, r.created_at
  from extension_registry r
 where exists (select from extension_version v where v.registry_id = r.id and v.state = 'published')
"""
_LIST: Final = text(_SELECT + " and (cast(:after as text) is null or r.name > :after) order by r.name limit :limit")
_FIND: Final = text(_SELECT + " and (r.name = :ref or r.id = cast(:uuid as uuid))")


class ExtensionRepository:
    """Global table `extension_registry`. A name without a published version is nobody's business but its publisher's."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def list_extensions(self, *, limit: int, after: str | None) -> tuple[ExtensionView, ...]:
        """Return extensions by name, beginning after `after`."""
        rows = await self._session.execute(_LIST, {"limit": limit, "after": after})
        return tuple(_view(row) for row in rows.mappings())

    async def find(self, extension_ref: str) -> ExtensionView | None:
        """Return an extension by name or id."""
        rows = await self._session.execute(_FIND, {"ref": text_or_nothing(extension_ref), "uuid": uuid_or_none(extension_ref)})
        row = rows.mappings().first()
        return None if row is None else _view(row)


def _view(row: RowMapping) -> ExtensionView:
    return ExtensionView(
        extension_id=ExtensionId(row["extension_id"]),
        name=row["name"],
        publisher=row["publisher"],
        display_name=row["display_name"],
        description=row["description"],
        created_at=row["created_at"],
    )
