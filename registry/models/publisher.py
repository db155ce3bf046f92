"""`extension_publisher`: who owns extension names."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlmodel import SQLModel

from registry.models.column import created_column, id_column, text_column


class ExtensionPublisher(SQLModel, table=True):
    """A publisher. Its name never changes: extensions carry it."""

    __tablename__ = "extension_publisher"
    __table_args__ = (UniqueConstraint("id", "name"),)

    id: str = id_column(primary_key=True)
    name: str = text_column(unique=True)
    created_by: str = text_column()
    created_at: datetime = created_column()
