"""The schema's history (alembic): up, down, and where a database stands. Run as `ext_owner`, never by a serving process.

Failures are `MigrationError`: the database could not be brought to the wanted state, and nothing was changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

_LOCK: Final = 0x6578_7472  # "extr": two upgrades at once come one after the other.
MONTHS_AHEAD: Final = 3
_ENSURE_PARTITIONS: Final = text("select extrunner_create_execution_log_partitions(:months)")


class MigrationError(Exception):
    """The database could not be brought to the wanted state; the transaction was rolled back. The text says why."""


def upgrade(owner_url: str, revision: str = "head") -> str | None:
    """Bring the schema to `revision` in one transaction and make the partitions of the coming months. Return the revision reached.

    Raises:
        MigrationError: no connection, not the owner's role, or a failing migration.
    """
    with _connected(owner_url) as connection:
        command.upgrade(_config(connection), revision)
        reached = _revision_of(connection)
        if reached is not None:
            connection.execute(_ENSURE_PARTITIONS, {"months": MONTHS_AHEAD})
        return reached


def downgrade(owner_url: str, revision: str = "base") -> str | None:
    """Take the schema back to `revision`, with the data that only the later ones hold. Return the revision reached.

    Raises:
        MigrationError: as `upgrade`.
    """
    with _connected(owner_url) as connection:
        command.downgrade(_config(connection), revision)
        return _revision_of(connection)


def current(owner_url: str) -> str | None:
    """Return the revision that a database has, None for an empty one.

    Raises:
        MigrationError: no connection.
    """
    with _connected(owner_url) as connection:
        return _revision_of(connection)


def head() -> str | None:
    """Return the newest revision that this package knows."""
    return ScriptDirectory.from_config(_config(None)).get_current_head()


def ensure_partitions(url: str, months_ahead: int = MONTHS_AHEAD) -> int:
    """Make the execution log's partitions of this month and the next ones; return how many were missing. As ext_maintenance or ext_owner.

    Raises:
        MigrationError: no connection, or not allowed.
    """
    with _connected(url) as connection:
        return int(connection.execute(_ENSURE_PARTITIONS, {"months": months_ahead}).scalar_one())


def _revision_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.begin() as connection:
            connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            yield connection
    except (SQLAlchemyError, CommandError, psycopg.Error) as exc:
        message = f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else 'no detail'}"
        raise MigrationError(message) from exc
    finally:
        engine.dispose()


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
