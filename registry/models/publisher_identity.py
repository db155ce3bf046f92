"""`extension_publisher_identity`: who may sign for a publisher."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlmodel import SQLModel

from registry.models.column import created_column, id_column, text_column


class ExtensionPublisherIdentity(SQLModel, table=True):
    """One exact identity of one issuer under one trust domain."""

    __tablename__ = "extension_publisher_identity"
    __table_args__ = (UniqueConstraint("publisher_id", "trust_domain", "issuer", "identity"),)

    id: str = id_column(primary_key=True)
    publisher_id: str = id_column(foreign_key="extension_publisher.id")
    trust_domain: str = text_column()
    issuer: str = text_column()
    identity: str = text_column()
    created_by: str = text_column()
    created_at: datetime = created_column()
