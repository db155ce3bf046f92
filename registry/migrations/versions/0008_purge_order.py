"""Events and schedules belong to the row that whoever writes them has locked, as stored records do.

A write locked its install's row of counts and then, by its foreign key, the install; a purge locks the install and then those rows. Each
waited for the other, so that an extension that never stopped publishing could not be purged.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_PARENTS = {"extension_event": "extension_event_usage", "extension_schedule": "extension_schedule_changes"}


def upgrade() -> None:
    for table, parent in _PARENTS.items():
        _refer(table, parent, "tenant_id, install_id")


def downgrade() -> None:
    for table in _PARENTS:
        _refer(table, "tenant_extension_install", "tenant_id, id")


def _refer(table: str, parent: str, key: str) -> None:
    op.execute(
        f"""alter table {table}
              drop constraint {table}_tenant_id_install_id_fkey,
              add constraint {table}_tenant_id_install_id_fkey foreign key (tenant_id, install_id)
                  references {parent} ({key}) on delete cascade"""
    )
