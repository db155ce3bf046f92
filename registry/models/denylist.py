"""`extension_denylist`: content that must not run any more."""

from __future__ import annotations

from datetime import datetime

from sqlmodel import SQLModel

from registry.models.column import created_column, text_column


class ExtensionDenylist(SQLModel, table=True):
    """One revoked content hash."""

    __tablename__ = "extension_denylist"

    content_hash: str = text_column(primary_key=True)
    reason: str = text_column()
    created_by: str = text_column()
    created_at: datetime = created_column()
