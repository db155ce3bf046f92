"""Revocations: content that must not run any more."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from registry.database import Database
from registry.domain.digests import ContentHash, is_content_hash
from registry.domain.errors import Reason, RefusalError
from registry.repositories.audit import AuditRepository
from registry.repositories.denylist import DenylistRepository, Revocation
from registry.services.pages import checked_limit, decode_cursor, encode_cursor

_MAX_REASON_CHARACTERS: Final = 500


class RevocationService:
    """Denies content hashes, with an audit row. Needs role ext_admin."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def deny(self, content_hash: str, reason: str, actor: str) -> bool:
        """Deny a hash, published or not. Tell whether it was not denied before. Daemons act on it within their cache's seconds.

        Raises:
            RefusalError: INVALID_REQUEST, REGISTRY_UNAVAILABLE.
        """
        if not is_content_hash(content_hash):
            raise RefusalError(Reason.INVALID_REQUEST, 'The content hash must be "sha256:" and 64 lower-case hexadecimal digits.')
        if not reason.strip() or len(reason) > _MAX_REASON_CHARACTERS or not reason.isprintable():
            raise RefusalError(Reason.INVALID_REQUEST, f"Give a reason of 1 to {_MAX_REASON_CHARACTERS} printable characters.")
        async with self._database.session() as session:
            added = await DenylistRepository(session).add(ContentHash(content_hash), reason=reason, actor=actor)
            if added:
                await AuditRepository(session).record(actor=actor, action="content.deny", subject=content_hash, detail={"reason": reason})
        return added

    async def list(self, *, limit: int = 50, cursor: str | None = None) -> tuple[tuple[Revocation, ...], str | None]:
        """Return a page of revocations, newest first, and the cursor of the next one.

        Raises:
            RefusalError: INVALID_REQUEST (cursor, limit), REGISTRY_UNAVAILABLE.
        """
        before = None if cursor is None else _position(cursor)
        async with self._database.session() as session:
            found = await DenylistRepository(session).list_revocations(limit=checked_limit(limit) + 1, before=before)
        page = found[:limit]
        return page, encode_cursor(page[-1].created_at.isoformat(), page[-1].content_hash) if len(found) > limit else None


def _position(cursor: str) -> tuple[datetime, str]:
    moment, content_hash = decode_cursor(cursor, 2)
    try:
        return datetime.fromisoformat(moment), content_hash
    except ValueError as exc:
        raise RefusalError(Reason.INVALID_REQUEST, "The cursor is not one that this service gave; begin again without it.") from exc
