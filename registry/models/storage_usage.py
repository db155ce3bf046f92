"""`ext_storage_usage`: how much each install stores, kept current by every write."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKeyConstraint
from sqlmodel import Field, SQLModel

from registry.models.column import id_column, json_column, text_column


class ExtStorageUsage(SQLModel, table=True):
    """One install's figures. Its row is locked by whoever writes, so that limits hold under concurrency."""

    __tablename__ = "ext_storage_usage"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "install_id"], ["tenant_extension_install.tenant_id", "tenant_extension_install.id"], ondelete="CASCADE"
        ),
    )

    tenant_id: str = text_column(primary_key=True)
    install_id: str = id_column(primary_key=True)
    bytes_used: int = Field(sa_type=BigInteger)
    keys_count: int
    namespaces_count: int
    namespace_keys: dict[str, int] = json_column()
