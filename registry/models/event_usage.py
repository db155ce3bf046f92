"""`extension_event_usage`: how much each install published, kept current by every event."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKeyConstraint
from sqlmodel import Field, SQLModel

from registry.models.column import id_column, text_column, time_column


class ExtensionEventUsage(SQLModel, table=True):
    """One install's figures. Its row is locked by whoever publishes, so that order and bounds hold under concurrency."""

    __tablename__ = "extension_event_usage"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "install_id"], ["tenant_extension_install.tenant_id", "tenant_extension_install.id"], ondelete="CASCADE"
        ),
    )

    tenant_id: str = text_column(primary_key=True)
    install_id: str = id_column(primary_key=True)
    last_sequence: int = Field(sa_type=BigInteger)
    minute: datetime = time_column()
    minute_events: int
    day: datetime = time_column()
    day_events: int
    day_bytes: int = Field(sa_type=BigInteger)
