"""The denylist of content hashes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import desc, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col

from registry.database import Session
from registry.domain.digests import ContentHash
from registry.models import ExtensionDenylist


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """One revoked content hash."""

    content_hash: ContentHash
    reason: str
    created_by: str
    created_at: datetime


class DenylistRepository:
    """Global table `extension_denylist`. Writing needs role ext_admin; nobody takes a revocation back."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def add(self, content_hash: ContentHash, *, reason: str, actor: str) -> bool:
        """Deny a hash. Tell whether it was not denied before."""
        statement = insert(ExtensionDenylist).values(content_hash=content_hash, reason=reason, created_by=actor)
        added = await self._session.execute(statement.on_conflict_do_nothing().returning(col(ExtensionDenylist.content_hash)))
        return added.first() is not None

    async def list_revocations(self, *, limit: int, before: tuple[datetime, str] | None) -> tuple[Revocation, ...]:
        """Return revocations, newest first, beginning below `before` (time and hash)."""
        table = ExtensionDenylist
        key = tuple_(col(table.created_at), col(table.content_hash))
        statement = select(col(table.content_hash), col(table.reason), col(table.created_by), col(table.created_at))
        if before is not None:
            statement = statement.where(key < before)
        statement = statement.order_by(desc(col(table.created_at)), desc(col(table.content_hash))).limit(limit)
        rows = await self._session.execute(statement)
        return tuple(
            Revocation(content_hash=ContentHash(content_hash), reason=reason, created_by=actor, created_at=created_at)
            for content_hash, reason, actor, created_at in rows
        )
