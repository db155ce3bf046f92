"""The seven tables, their companions, row-level security, functions and grants.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

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
        _run((Path(__file__).parent / f"{revision}_{part}.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    for function in _FUNCTIONS[:2]:
        _run(f"drop function {function}")
    for table in _TABLES:
        _run(f"drop table {table}")
    _run(f"drop function {_FUNCTIONS[2]}")


def _run(statements: str) -> None:
    # By the driver itself: these are several statements at once, and neither ":" nor "%" in them is a parameter.
    driver = op.get_bind().connection.driver_connection
    if driver is None:  # pragma: no cover - alembic always has a connection here
        message = "no database connection"
        raise RuntimeError(message)
    driver.execute(statements)
