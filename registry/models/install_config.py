"""`tenant_extension_install_config`: a tenant's settings for an install."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKeyConstraint
from sqlmodel import SQLModel

from registry.models.column import created_column, id_column, json_column, text_column


class TenantExtensionInstallConfig(SQLModel, table=True):
    """The settings; `version` changes with every write."""

    __tablename__ = "tenant_extension_install_config"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "install_id"], ["tenant_extension_install.tenant_id", "tenant_extension_install.id"], ondelete="CASCADE"
        ),
    )

    tenant_id: str = text_column(primary_key=True)
    install_id: str = id_column(primary_key=True)
    config: dict[str, str] = json_column()
    providers: list[Any] = json_column()
    version: str = id_column()
    created_at: datetime = created_column()
    updated_at: datetime = created_column()
