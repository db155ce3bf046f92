"""`extension_registry`: the extensions, each under one name of one publisher."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKeyConstraint, UniqueConstraint
from sqlmodel import SQLModel

from registry.models.column import created_column, id_column, optional_text, text_column


class ExtensionRegistryEntry(SQLModel, table=True):
    """One extension."""

    __tablename__ = "extension_registry"
    __table_args__ = (
        UniqueConstraint("publisher", "name"),
        ForeignKeyConstraint(["publisher_id", "publisher"], ["extension_publisher.id", "extension_publisher.name"]),
    )

    id: str = id_column(primary_key=True)
    publisher_id: str = id_column()
    publisher: str = text_column()
    name: str = text_column(unique=True)
    display_name: str | None = optional_text()
    description: str | None = optional_text()
    created_at: datetime = created_column()
    updated_at: datetime = created_column()
