"""The database roles and who may do what: made once for each server, before the first migration.

Attack they stop: the process that parses internet traffic also grants (T7). None of the roles is superuser, BYPASSRLS, able to make roles
or databases; `ext_owner` owns the tables and is used by migrations only. The privileges are in `privileges.json` and granted by migrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

OWNER: Final = "ext_owner"
GATEWAY: Final = "ext_gateway"
RUNNER: Final = "ext_runner"
ADMIN: Final = "ext_admin"
MAINTENANCE: Final = "ext_maintenance"
APPLICATION_ROLES: Final = (GATEWAY, RUNNER, ADMIN, MAINTENANCE)
ROLES: Final = (OWNER, *APPLICATION_ROLES)
DATABASE: Final = "extrunner"


class RoleSetupError(Exception):
    """The roles or the database could not be made; the text says what to change."""


def create_roles(superuser_url: str, passwords: Mapping[str, str], *, database: str = DATABASE) -> None:
    """Create what is missing of roles and database, set the given passwords, and check that no role has a dangerous attribute.

    May be repeated. A role without password is created without login. Passwords travel as SCRAM verifiers, so no server log can hold them.

    Args:
        superuser_url: of a superuser or, on managed servers, of a role that may create roles and databases; any database of the server.
        passwords: by role name.
        database: the database to create, owned by `ext_owner`.

    Raises:
        RoleSetupError: no connection, missing rights, or a role that exists with SUPERUSER, BYPASSRLS, CREATEROLE, CREATEDB or REPLICATION.
    """
    unknown = sorted(set(passwords) - set(ROLES))
    if unknown:
        message = f"unknown roles {unknown}; the roles are {list(ROLES)}"
        raise RoleSetupError(message)
    try:
        with psycopg.connect(libpq_conninfo(superuser_url), autocommit=True, connect_timeout=5) as connection:
            for role in ROLES:
                _create_role(connection, role, passwords.get(role))
            _refuse_dangerous(connection)
            _create_database(connection, database)
        inside = make_url(superuser_url).set(database=database).render_as_string(hide_password=False)
        with psycopg.connect(libpq_conninfo(inside), autocommit=True, connect_timeout=5) as connection:
            _restrict_schema(connection)
    except psycopg.Error as exc:
        message = f"the roles could not be made: {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
        raise RoleSetupError(message) from exc


def libpq_conninfo(url: str) -> str:
    """Return the connection string of libpq for a SQLAlchemy URL."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _create_role(connection: psycopg.Connection, role: str, password: str | None) -> None:
    name = sql.Identifier(role)
    if connection.execute("select 1 from pg_roles where rolname = %s", (role,)).fetchone() is None:
        connection.execute(sql.SQL("create role {}").format(name))
    if password is not None:
        verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        connection.execute(sql.SQL("alter role {} login password {}").format(name, sql.Literal(verifier)))


def _refuse_dangerous(connection: psycopg.Connection) -> None:
    rows = connection.execute(
        """select rolname from pg_roles
            where rolname = any(%s) and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)""",
        (list(ROLES),),
    ).fetchall()
    if rows:
        names = ", ".join(sorted(row[0] for row in rows))
        message = f"{names}: existing role with SUPERUSER, BYPASSRLS, CREATEROLE, CREATEDB or REPLICATION; take that away first"
        raise RoleSetupError(message)


def _create_database(connection: psycopg.Connection, database: str) -> None:
    name = sql.Identifier(database)
    if connection.execute("select 1 from pg_database where datname = %s", (database,)).fetchone() is None:
        # Whoever creates a database for another role must be a member of it; a superuser always is.
        if not _scalar(connection.execute("select pg_has_role(current_user, %s, 'member')", (OWNER,)).fetchone()):
            connection.execute(sql.SQL("grant {} to current_user").format(sql.Identifier(OWNER)))
        connection.execute(sql.SQL("create database {} owner {} template template0 encoding 'UTF8'").format(name, sql.Identifier(OWNER)))
    # SECURITY: nobody but the five roles connects, and nobody makes temporary tables that could shadow a real one.
    connection.execute(sql.SQL("revoke all on database {} from public").format(name))
    for role in ROLES:
        connection.execute(sql.SQL("grant connect on database {} to {}").format(name, sql.Identifier(role)))


def _restrict_schema(connection: psycopg.Connection) -> None:
    connection.execute("revoke all on schema public from public")
    connection.execute(sql.SQL("grant usage, create on schema public to {}").format(sql.Identifier(OWNER)))
    for role in APPLICATION_ROLES:
        connection.execute(sql.SQL("grant usage on schema public to {}").format(sql.Identifier(role)))


def _scalar(row: tuple[object, ...] | None) -> object:
    return None if row is None else row[0]
