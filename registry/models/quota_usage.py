"""`extension_quota_usage`: what each tenant's extension used, by the hour."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel

from registry.models.column import id_column, text_column, time_column


class ExtensionQuotaUsage(SQLModel, table=True):
    """Sums of one hour (UTC)."""

    __tablename__ = "extension_quota_usage"

    tenant_id: str = text_column(primary_key=True)
    registry_id: str = id_column(primary_key=True)
    window_start: datetime = time_column(primary_key=True)
    cpu_ms: int = Field(sa_type=BigInteger)
    mem_mb_ms: int = Field(sa_type=BigInteger)
    invocations: int = Field(sa_type=BigInteger)
    egress_bytes: int = Field(sa_type=BigInteger)
