"""`extension_measurement`: what installs measured, one row for each series, added to by every daemon."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Double, ForeignKeyConstraint
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Field, SQLModel

from registry.models.column import id_column, text_column, time_column


class ExtensionMeasurement(SQLModel, table=True):
    """One series. `labels` is JSON in one canonical form; `buckets` is there for histograms, not cumulative."""

    __tablename__ = "extension_measurement"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "install_id"], ["tenant_extension_install.tenant_id", "tenant_extension_install.id"], ondelete="CASCADE"
        ),
    )

    tenant_id: str = text_column(primary_key=True)
    install_id: str = id_column(primary_key=True)
    name: str = text_column(primary_key=True)
    labels: str = text_column(primary_key=True)
    kind: str = text_column()
    value: float = Field(sa_type=Double)
    buckets: list[int] | None = Field(default=None, sa_type=ARRAY(BigInteger), nullable=True)
    observed_at: datetime = time_column()
