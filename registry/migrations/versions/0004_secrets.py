"""Secrets of installs, and who may write down that one was refused.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

from registry.migrations.statements import run

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    op.execute("revoke insert on extension_audit_log from ext_runner, ext_maintenance")
    op.execute("drop policy refused_secrets on extension_audit_log")
    op.execute("drop table tenant_extension_install_secrets")
