"""Schedules of installs, and how often each install changed them lately.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from pathlib import Path

from registry.migrations.statements import run

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    run("drop table extension_schedule_changes, extension_schedule")
