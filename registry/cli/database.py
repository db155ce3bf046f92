"""`extctl db`: the schema, the roles, and what goes because it is old. The only verbs that talk to PostgreSQL themselves.

A database URL holds a password and is therefore taken from a file, from EXTCTL_DATABASE_URL, or from a development machine's state;
never from the command line, which everybody on the machine can read.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from registry import migrations
from registry.cli.options import DEFAULT_STATE_FOLDER, JsonOption, StateOption
from registry.cli.output import Progress, UnavailableError, UsageError, endings, file_errors, result
from registry.cli.rewrapping import read_rewrap_settings, rewrap
from registry.cli.state import read_json, state_at
from registry.cli.sweeping import sweep_forever, sweep_once
from registry.database import UnsafeDatabaseRoleError
from registry.embedded_postgres import EmbeddedPostgresError, read_urls
from registry.migrations.roles import DATABASE, MAINTENANCE, OWNER, ROLES, RoleSetupError, create_roles
from registry.services.retention import EVENT_DAYS

URL_VARIABLE: Final = "EXTCTL_DATABASE_URL"
_MAX_URL_CHARACTERS: Final = 4096

UrlFileOption = Annotated[
    Path | None,
    typer.Option("--url-file", metavar="FILE", help=f"File that holds the database URL. Otherwise {URL_VARIABLE}, otherwise --state."),
]

db = typer.Typer(no_args_is_help=True, help="The database: its schema and roles, as their owner, and what goes because it is old.")


@db.command("upgrade")
def upgrade(
    revision: Annotated[str, typer.Argument(help="Revision to reach.")] = "head",
    *,
    url_file: UrlFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Bring the schema to the newest revision, in one transaction."""
    with endings(as_json=as_json), file_errors():
        url = _url_of(OWNER, url_file, state)
        try:
            with Progress("upgrading the schema"):
                reached = migrations.upgrade(url, revision)
        except migrations.MigrationError as exc:
            raise UnavailableError(str(exc)) from exc
        result({"revision": reached}, as_json=as_json, text=f"at revision {reached}")


@db.command("current")
def current(*, url_file: UrlFileOption = None, state: StateOption = DEFAULT_STATE_FOLDER, as_json: JsonOption = False) -> None:
    """Say which revision the schema has, and which is the newest. Exit code 1 where they differ."""
    with endings(as_json=as_json), file_errors():
        try:
            found, newest = migrations.current(_url_of(OWNER, url_file, state)), migrations.head()
        except migrations.MigrationError as exc:
            raise UnavailableError(str(exc)) from exc
        text = f"at revision {found or '(empty)'}" + ("" if found == newest else f"; the newest is {newest}: run `extctl db upgrade`")
        result({"revision": found, "head": newest}, as_json=as_json, text=text)
        if found != newest:
            raise typer.Exit(1)


@db.command("create-roles")
def make_roles(
    passwords: Annotated[Path, typer.Option(metavar="FILE", help="JSON object, role to password; a role without one cannot log in.")],
    *,
    database: Annotated[str, typer.Option(help="Database to make.")] = DATABASE,
    url_file: UrlFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the roles and the database on a server, as a role that may. May be repeated."""
    with endings(as_json=as_json), file_errors():
        document = read_json(passwords)
        if document is None or not all(isinstance(value, str) for value in document.values()):
            message = f"{passwords} is no JSON object of passwords."
            raise UsageError(message)
        url = _given_url(url_file)
        if url is None:
            message = f"Name the server with --url-file or {URL_VARIABLE}."
            raise UsageError(message)
        try:
            create_roles(url, document, database=database)
        except RoleSetupError as exc:
            raise UnavailableError(str(exc)) from exc
        result({"database": database, "roles": list(ROLES)}, as_json=as_json, text=f"database {database}, roles {', '.join(ROLES)}")


@db.command("rewrap-secrets")
def rewrap_secrets(
    keys: Annotated[
        Path, typer.Option("--keys", metavar="FILE", help='JSON: {"opening": {…old and new key…}, "sealing": {…new key…}}; see operations.')
    ],
    *,
    url_file: UrlFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Put every secret under the present key, as ext_maintenance. May be stopped and repeated. Exit code 1 where one does not open."""
    with endings(as_json=as_json), file_errors():
        url = _url_of(MAINTENANCE, url_file, state)
        with Progress("wrapping secrets anew"):
            report = rewrap(url, read_rewrap_settings(keys))
        text = f"{report.rewrapped} under {report.kek_id}; {report.overtaken} written by others meanwhile, {report.refused} refused"
        result(asdict(report), as_json=as_json, text=text)
        if report.refused:
            raise typer.Exit(1)


@db.command("sweep")
def sweep(
    *,
    event_days: Annotated[
        int, typer.Option(min=1, max=3_650, help="Days that events of extensions are kept, delivered or not.")
    ] = EVENT_DAYS,
    every: Annotated[
        float | None, typer.Option(min=1, max=86_400, metavar="SECONDS", help="Again after each pause, until it is told to stop.")
    ] = None,
    url_file: UrlFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Delete what is past its time, as ext_maintenance: expired records of storage, old events. May be interrupted and repeated."""
    with endings(as_json=as_json), file_errors():
        url = _url_of(MAINTENANCE, url_file, state)
        try:
            if every is not None:
                asyncio.run(sweep_forever(url, event_days=event_days, every_seconds=every))
                return
            with Progress("deleting what is old"):
                swept = asyncio.run(sweep_once(url, event_days=event_days))
        except UnsafeDatabaseRoleError as exc:
            raise UsageError(str(exc)) from exc
        result(swept, as_json=as_json, text=f"deleted {swept['records']} records and {swept['events']} events")


def _url_of(role: str, url_file: Path | None, state: Path) -> str:
    given = _given_url(url_file)
    if given is not None:
        return given
    try:
        return read_urls(state_at(state).postgres)[role]
    except EmbeddedPostgresError as exc:
        message = f"No database: name --url-file, set {URL_VARIABLE}, or start a development machine ({exc})."
        raise UnavailableError(message) from exc


def _given_url(url_file: Path | None) -> str | None:
    if url_file is None:
        return os.environ.get(URL_VARIABLE) or None
    with url_file.open() as stream:
        url = stream.read(_MAX_URL_CHARACTERS).strip()
    if not url:
        message = f"{url_file} is empty."
        raise UsageError(message)
    return url
