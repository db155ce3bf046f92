"""What alembic runs: migrations of one connection that `registry.migrations` hands in."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlmodel import SQLModel

import registry.models  # noqa: F401 - registers the tables


def include_object(_object: object, name: str | None, kind: str, reflected: bool, _compare_to: object) -> bool:  # noqa: FBT001 - alembic's
    """Leave partitions out of comparisons: they are made by a function, and alembic would drop them."""
    return not (kind == "table" and reflected and (name or "").startswith("extension_execution_log_"))


def _migrate() -> None:
    connection: Any = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=SQLModel.metadata, include_object=include_object)
    with context.begin_transaction():
        context.run_migrations()


_migrate()
