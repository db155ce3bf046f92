"""The catalogue: which extensions and versions are published, for whoever chooses what to install."""

from __future__ import annotations

from typing import Final

from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.repositories.extensions import ExtensionRepository, ExtensionView
from registry.repositories.version_order import is_version
from registry.repositories.versions import VersionRepository, VersionRow
from registry.services.pages import checked_limit, decode_cursor, encode_cursor

__all__ = ["CatalogueService", "ExtensionView", "VersionRow"]

_MAX_REF_CHARACTERS: Final = 128


class CatalogueService:
    """Reads what is published; the same for every tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_extensions(self, *, limit: int = 50, cursor: str | None = None) -> tuple[tuple[ExtensionView, ...], str | None]:
        """Return a page of extensions by name, and the cursor of the next one.

        Raises:
            RefusalError: INVALID_REQUEST (cursor, limit), REGISTRY_UNAVAILABLE.
        """
        after = None if cursor is None else decode_cursor(cursor, 1)[0]
        async with self._database.session() as session:
            found = await ExtensionRepository(session).list_extensions(limit=checked_limit(limit) + 1, after=after)
        return found[:limit], encode_cursor(found[limit - 1].name) if len(found) > limit else None

    async def list_versions(
        self, extension_ref: str, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[tuple[VersionRow, ...], str | None]:
        """Return a page of the published versions of an extension (name or id), highest first, and the cursor of the next one.

        Raises:
            RefusalError: NOT_FOUND (no such extension), INVALID_REQUEST (cursor, limit), REGISTRY_UNAVAILABLE.
        """
        before = None if cursor is None else decode_cursor(cursor, 1)[0]
        if before is not None and not is_version(before):
            raise RefusalError(Reason.INVALID_REQUEST, "The cursor is not one that this service gave; begin again without it.")
        async with self._database.session() as session:
            extension = await ExtensionRepository(session).find(extension_ref[:_MAX_REF_CHARACTERS])
            if extension is None:
                raise RefusalError(Reason.NOT_FOUND, "There is no such extension; check its name.")
            versions = VersionRepository(session)
            found = await versions.list_published(extension.extension_id, limit=checked_limit(limit) + 1, before=before)
        return found[:limit], encode_cursor(found[limit - 1].version) if len(found) > limit else None
