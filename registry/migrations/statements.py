"""Running a migration's SQL file."""

from __future__ import annotations

from alembic import op


def run(statements: str) -> None:
    """Run several statements at once, by the driver itself: neither ":" nor "%" in them is a parameter."""
    driver = op.get_bind().connection.driver_connection
    if driver is None:  # pragma: no cover - alembic always has a connection here
        message = "no database connection"
        raise RuntimeError(message)
    driver.execute(statements)
