"""`extension_schedule_changes`: when each install changed its schedules lately."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import DateTime, ForeignKeyConstraint
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Field, SQLModel

from registry.models.column import id_column, text_column


class ExtensionScheduleChanges(SQLModel, table=True):
    """One install's changes of the last minute. Its row is locked by whoever changes, so that every bound holds for a fleet of daemons."""

    __tablename__ = "extension_schedule_changes"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "install_id"], ["tenant_extension_install.tenant_id", "tenant_extension_install.id"], ondelete="CASCADE"
        ),
    )

    tenant_id: str = text_column(primary_key=True)
    install_id: str = id_column(primary_key=True)
    changed_at: list[datetime] = Field(sa_type=ARRAY(DateTime(timezone=True)), nullable=False)
