"""Storage of extensions: metadata as text, and each write one statement that keeps its install's sums under its lock.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from pathlib import Path

from registry.migrations.statements import run

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    run(
        """
drop function extrunner_storage_put, extrunner_storage_delete, extrunner_storage_clear, extrunner_storage_count;
drop index ext_storage_record_expiry;
alter table ext_storage_record
    drop constraint ext_storage_record_usage_fkey,
    add constraint ext_storage_record_tenant_id_install_id_fkey foreign key (tenant_id, install_id)
        references tenant_extension_install (tenant_id, id) on delete cascade,
    drop column metadata,
    add column metadata jsonb not null default '{}'
"""
    )
