"""`ext_storage_record`: what extensions store."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, LargeBinary, text
from sqlmodel import Field, SQLModel

from registry.models.column import created_column, id_column, optional_text, optional_time, text_column


class ExtStorageRecord(SQLModel, table=True):
    """One value and the text beside it, as the guest gave them."""

    __tablename__ = "ext_storage_record"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "install_id"], ["ext_storage_usage.tenant_id", "ext_storage_usage.install_id"], ondelete="CASCADE"
        ),
        Index("ext_storage_record_ttl", "ttl_expires_at", postgresql_where=text("ttl_expires_at is not null")),
        Index(
            "ext_storage_record_expiry", "tenant_id", "install_id", "ttl_expires_at", postgresql_where=text("ttl_expires_at is not null")
        ),
    )

    tenant_id: str = text_column(primary_key=True)
    install_id: str = id_column(primary_key=True)
    namespace: str = text_column(primary_key=True)
    key: str = text_column(primary_key=True)
    revision: int = Field(sa_type=BigInteger)
    value: bytes = Field(sa_type=LargeBinary)
    metadata_text: str | None = optional_text(name="metadata")
    value_size_bytes: int
    metadata_size_bytes: int
    ttl_expires_at: datetime | None = optional_time()
    created_at: datetime = created_column()
    updated_at: datetime = created_column()
