"""What a tenant leaves of the hosts that an extension declares, and an operator's time in which that list is counted only.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """alter table tenant_extension_install
             add column egress_hosts jsonb check (jsonb_typeof(egress_hosts) = 'array'),
             add column egress_count_until timestamptz"""
    )
    op.execute("grant update (egress_hosts, egress_count_until) on tenant_extension_install to ext_admin")


def downgrade() -> None:
    op.execute("alter table tenant_extension_install drop column egress_hosts, drop column egress_count_until")
