"""Secrets that the daemon puts into a header of requests to one host.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """alter table tenant_extension_install
             add column egress_secrets jsonb not null default '[]' check (jsonb_typeof(egress_secrets) = 'array')"""
    )
    op.execute("grant update (egress_secrets) on tenant_extension_install to ext_admin")


def downgrade() -> None:
    op.execute("alter table tenant_extension_install drop column egress_secrets")
