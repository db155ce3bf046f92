"""The seven tables, their companions, row-level security, functions and grants.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

from pathlib import Path

from registry.migrations.statements import run

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_PARTS = ("tables", "row_level_security", "functions", "grants")
_TABLES = (
    "extension_audit_log",
    "ext_storage_usage",
    "ext_storage_record",
    "extension_quota_usage",
    "extension_execution_log",
    "extension_event_subscription",
    "tenant_extension_install_config",
    "tenant_extension_install",
    "extension_denylist",
    "extension_bundle",
    "extension_version",
    "extension_registry",
    "extension_publisher_identity",
    "extension_publisher",
)
_FUNCTIONS = (
    "extrunner_is_interface_served(text, text)",
    "extrunner_create_execution_log_partitions(integer)",
    "extrunner_keep_published()",
)


def upgrade() -> None:
    for part in _PARTS:
        run((Path(__file__).parent / f"{revision}_{part}.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    for function in _FUNCTIONS[:2]:
        run(f"drop function {function}")
    for table in _TABLES:
        run(f"drop table {table}")
    run(f"drop function {_FUNCTIONS[2]}")
