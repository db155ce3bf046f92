"""What extensions measure, and the events that they publish.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from pathlib import Path

from registry.migrations.statements import run

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    run("drop table extension_event_usage, extension_event, extension_measurement")
