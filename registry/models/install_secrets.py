"""`tenant_extension_install_secrets`: sealed values of an install, one row for each name."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKeyConstraint, LargeBinary
from sqlmodel import Field, SQLModel

from registry.models.column import created_column, id_column, optional_time, text_column


class TenantExtensionInstallSecret(SQLModel, table=True):
    """One sealed value. Who may write it may not read `ciphertext` and `wrapped_key`."""

    __tablename__ = "tenant_extension_install_secrets"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "install_id"], ["tenant_extension_install.tenant_id", "tenant_extension_install.id"], ondelete="CASCADE"
        ),
    )

    tenant_id: str = text_column(primary_key=True)
    install_id: str = id_column(primary_key=True)
    name: str = text_column(primary_key=True)
    version: int = Field(sa_type=BigInteger)
    kek_id: str = text_column()
    wrapped_key: bytes = Field(sa_type=LargeBinary)
    ciphertext: bytes = Field(sa_type=LargeBinary)
    expires_at: datetime | None = optional_time()
    created_at: datetime = created_column()
    updated_at: datetime = created_column()
    updated_by: str = text_column()
