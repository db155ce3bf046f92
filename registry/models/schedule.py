"""`extension_schedule`: when an install's endpoint is to be called by itself."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKeyConstraint, UniqueConstraint
from sqlmodel import Field, SQLModel

from registry.models.column import created_column, id_column, optional_text, optional_time, text_column


class ExtensionSchedule(SQLModel, table=True):
    """One schedule. The endpoint is named by method and path, so that it survives a new version of the extension.

    `revision` grows with each change of what runs or when: whoever has an older one at hand holds something that is not meant any more.
    """

    __tablename__ = "extension_schedule"
    __table_args__ = (
        UniqueConstraint("tenant_id", "install_id", "name"),
        ForeignKeyConstraint(
            ["tenant_id", "install_id"],
            ["extension_schedule_changes.tenant_id", "extension_schedule_changes.install_id"],
            ondelete="CASCADE",
        ),
    )

    tenant_id: str = text_column(primary_key=True)
    id: str = id_column(primary_key=True)
    install_id: str = id_column()
    name: str | None = optional_text()
    endpoint_method: str = text_column()
    endpoint_path: str = text_column()
    cron: str = text_column()
    timezone: str = text_column()
    enabled: bool
    stopped_by: str | None = optional_text()
    payload: str | None = optional_text()
    revision: int = Field(sa_type=BigInteger)
    last_run_at: datetime | None = optional_time()
    last_run_status: str | None = optional_text()
    last_error: str | None = optional_text()
    created_at: datetime = created_column()
    updated_at: datetime = created_column()
