"""`extension_bundle`: the bytes of a version, and who was found to have signed them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKeyConstraint, UniqueConstraint
from sqlmodel import Field, SQLModel

from registry.models.column import created_column, id_column, optional_json, text_column, time_column


class ExtensionBundle(SQLModel, table=True):
    """One archive. `signature` and `storage_url` are keys in the object store."""

    __tablename__ = "extension_bundle"
    __table_args__ = (
        UniqueConstraint("version_id", "content_hash"),
        ForeignKeyConstraint(["version_id"], ["extension_version.id"], ondelete="CASCADE"),
    )

    id: str = id_column(primary_key=True)
    version_id: str = id_column(unique=True)
    content_hash: str = text_column(unique=True)
    signature: str = text_column()
    precompiled: dict[str, Any] | None = optional_json()
    storage_url: str = text_column()
    size_bytes: int = Field(sa_type=BigInteger)
    trust_domain: str = text_column()
    signer_issuer: str = text_column()
    signer_identity: str = text_column()
    verified_at: datetime = time_column()
    created_at: datetime = created_column()
