"""`extension_event`: what extensions published, until it is delivered and old. An outbox of CloudEvents."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, LargeBinary, SmallInteger, UniqueConstraint, Uuid, text
from sqlmodel import Field, SQLModel

from registry.models.column import created_column, id_column, optional_text, optional_time, text_column


class ExtensionEvent(SQLModel, table=True):
    """One event. `sequence` grows with each event of an install; events of one `ordering_key` are delivered in that order.

    CloudEvents: id, source and datacontenttype are columns, type is `topic`, time is `published_at`, partitionkey is `ordering_key`.
    """

    __tablename__ = "extension_event"
    __table_args__ = (
        UniqueConstraint("tenant_id", "install_id", "sequence"),
        ForeignKeyConstraint(
            ["tenant_id", "install_id"], ["extension_event_usage.tenant_id", "extension_event_usage.install_id"], ondelete="CASCADE"
        ),
        Index("extension_event_waiting", "tenant_id", "install_id", "sequence", postgresql_where=text("dispatched_at is null")),
        Index("extension_event_age", "published_at"),
    )

    tenant_id: str = text_column(primary_key=True)
    id: str = id_column(primary_key=True)
    install_id: str = id_column()
    registry_id: str = id_column(foreign_key="extension_registry.id")
    sequence: int = Field(sa_type=BigInteger)
    source: str = text_column()
    topic: str = text_column()
    ordering_key: str | None = optional_text()
    content_type: str = text_column()
    data: bytes = Field(sa_type=LargeBinary)
    depth: int = Field(sa_type=SmallInteger)
    cause_id: str | None = Field(default=None, sa_type=Uuid(as_uuid=False), nullable=True)
    request_id: str = text_column()
    published_at: datetime = created_column()
    dispatched_at: datetime | None = optional_time()
