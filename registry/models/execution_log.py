"""`extension_execution_log`: what ran, for whom, with which result. Partitioned by month."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from registry.models.column import id_column, json_column, optional_text, optional_time, text_column, time_column


class ExtensionExecutionLog(SQLModel, table=True):
    """One execution. `metrics` holds what it used; `status` the outcome, `error` the trap, limit or reason behind it."""

    __tablename__ = "extension_execution_log"
    __table_args__ = (
        Index("extension_execution_log_registry", "tenant_id", "registry_id", "started_at"),
        {"postgresql_partition_by": "range (started_at)"},
    )

    tenant_id: str = text_column(primary_key=True)
    started_at: datetime = time_column(primary_key=True)
    id: str = id_column(primary_key=True)
    install_id: str = id_column()
    registry_id: str = id_column()
    version_id: str = id_column()
    content_hash: str = text_column()
    request_id: str = text_column()
    trigger: str = text_column()
    method: str = text_column()
    endpoint: str = text_column()
    user_id: str | None = optional_text()
    finished_at: datetime | None = optional_time()
    status: str = text_column()
    error: str | None = optional_text()
    http_status: int | None = Field(default=None)
    metrics: dict[str, Any] = json_column()
    denials: list[dict[str, str]] = json_column()
    log: list[dict[str, str]] = json_column()
