"""`extension_audit_log`: who changed what."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlmodel import SQLModel

from registry.models.column import created_column, id_column, json_column, text_column


class ExtensionAuditLog(SQLModel, table=True):
    """One act. `tenant_id` is "*" for acts of the platform."""

    __tablename__ = "extension_audit_log"
    __table_args__ = (Index("extension_audit_log_time", "tenant_id", "created_at"),)

    tenant_id: str = text_column(primary_key=True)
    id: str = id_column(primary_key=True)
    actor: str = text_column()
    action: str = text_column()
    subject: str = text_column()
    detail: dict[str, Any] = json_column()
    created_at: datetime = created_column()
