"""`extension_event_subscription`: which events reach which handler of an install."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKeyConstraint, Index, UniqueConstraint
from sqlmodel import SQLModel

from registry.models.column import created_column, id_column, optional_json, text_column


class ExtensionEventSubscription(SQLModel, table=True):
    """One subscription."""

    __tablename__ = "extension_event_subscription"
    __table_args__ = (
        UniqueConstraint("tenant_id", "install_id", "topic", "handler"),
        ForeignKeyConstraint(
            ["tenant_id", "install_id"], ["tenant_extension_install.tenant_id", "tenant_extension_install.id"], ondelete="CASCADE"
        ),
        Index("extension_event_subscription_topic", "tenant_id", "topic"),
    )

    tenant_id: str = text_column(primary_key=True)
    id: str = id_column(primary_key=True)
    install_id: str = id_column()
    topic: str = text_column()
    handler: str = text_column()
    filter: dict[str, Any] | None = optional_json()
    created_at: datetime = created_column()
