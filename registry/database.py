"""The one session factory of the product.

Attacks it stops: a process that connects as a superuser, a table owner or a BYPASSRLS role walks around row-level security without any
error (T17); a tenant set for a whole connection leaks to whoever uses that pooled connection next (T18). Therefore

- `Database.connect` refuses such roles before the first query of the product;
- the tenant is set here and nowhere else, for one transaction, and every connection is wiped (`RESET ALL`) on its way back to the pool;
- a transaction without a tenant sees no tenant's row, by policy.

    UnsafeDatabaseRoleError   the role could walk around row-level security, or is not the one expected
    RefusalError              REGISTRY_UNAVAILABLE: the database does not answer in time; INTERNAL: it refused (the cause is in `__cause__`)
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self, TypeAlias

import psycopg
from sqlalchemy import Result, TextClause, event, text
from sqlalchemy.engine import URL, IteratorResult, make_url
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId, is_tenant_id

Session: TypeAlias = AsyncConnection
"""What repositories take: one transaction of one role, for one tenant or for none. It must not outlive its `async with`."""

# SECURITY: `true` = for this transaction only. A setting of the session would outlive it in the pool.
_SET: Final = "select set_config('app.tenant_id', %s, true), set_config('statement_timeout', %s, true)"
_RESET: Final = "reset all"
"""The last statement of a transaction that is committed: one round trip for both. `_wipe` does it after every other end."""
_WIPED: Final = "is_wiped"
_STATEMENTS: Final = 64
_DIALECT: Final = make_url("postgresql+psycopg://").get_dialect()()

DEADLINE_SECONDS: Final = 1.0
"""From asking for a connection to the end of the transaction, unless the caller asks for more."""
_STATEMENT_SHARE: Final = 0.9
"""The server gives a statement up a little before we give the connection up: the former costs nothing, the latter a connection."""
_IDLE_IN_TRANSACTION_MS: Final = 10_000

_ROLE_CHECK: Final = text(
    """
select r.rolname, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolcreatedb, r.rolreplication, session_user = current_user as plain,
       exists (select from pg_roles o where (o.rolsuper or o.rolbypassrls) and pg_has_role(r.oid, o.oid, 'member')) as reaches_unsafe,
       exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and pg_has_role(r.oid, c.relowner, 'member')) as owns_tables
  from pg_roles r where r.rolname = current_user
"""
)


_log = logging.getLogger(__name__)
_UNAVAILABLE: Final = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError)


class UnsafeDatabaseRoleError(Exception):
    """The role of a database URL could walk around row-level security, or is another than expected. The text says what to change."""


class Database:
    """A pool of connections of one role. One for each process; made by `connect`, ended by `aclose`.

    Used from one event loop only.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        """Use `connect` instead: it checks the role."""
        self._engine = engine

    @classmethod
    async def connect(cls, url: str, *, expected_role: str, pool_size: int = 5) -> Self:
        """Connect and check the role.

        Args:
            url: `postgresql+psycopg://…`; its password is never shown.
            expected_role: the role that this process is meant to have.
            pool_size: connections at most; who finds none within a second is refused.

        Raises:
            UnsafeDatabaseRoleError: superuser, BYPASSRLS, able to make roles or databases, owner of tables (also by membership), or
                not `expected_role`.
            RefusalError: REGISTRY_UNAVAILABLE: the database does not answer.
        """
        database = cls(_build_engine(url, pool_size))
        try:
            await database._check_role(expected_role)
        except BaseException:
            await database.aclose()
            raise
        return database

    @asynccontextmanager
    async def tenant_session(self, tenant_id: TenantId | str, *, deadline_seconds: float = DEADLINE_SECONDS) -> AsyncIterator[Session]:
        """Open one transaction that sees the rows of `tenant_id` and no other tenant's. Commits on success, rolls back on an exception.

        Raises:
            RefusalError: INVALID_REQUEST: not a tenant id. REGISTRY_UNAVAILABLE: no answer within `deadline_seconds`. INTERNAL: refused.
        """
        async with self._transaction(_checked(tenant_id), deadline_seconds) as session:
            yield session

    @asynccontextmanager
    async def session(self, *, deadline_seconds: float = DEADLINE_SECONDS) -> AsyncIterator[Session]:
        """Open one transaction without tenant: global tables only, tenant tables look empty. Commits, rolls back and raises as above."""
        async with self._transaction("", deadline_seconds) as session:
            yield session

    def statements(self, tenant_id: TenantId | str, *, deadline_seconds: float = DEADLINE_SECONDS) -> TenantStatements:
        """Return what a repository takes in place of a session where each of its statements is a transaction of its own.

        Raises:
            RefusalError: INVALID_REQUEST: not a tenant id.
        """
        return TenantStatements(self._run, _checked(tenant_id), deadline_seconds)

    async def ping(self) -> None:
        """Ask the database for a sign of life.

        Raises:
            RefusalError: REGISTRY_UNAVAILABLE.
        """
        async with self.session() as session:
            await session.execute(text("select 1"))

    async def aclose(self) -> None:
        """Close every idle connection; those in use close when they are returned."""
        await self._engine.dispose()

    @asynccontextmanager
    async def _transaction(self, tenant: str, deadline_seconds: float) -> AsyncIterator[Session]:
        taken = await self._begin(tenant, deadline_seconds)
        with _refusals():
            try:
                yield taken.connection
                async with taken.driver.pipeline():
                    await taken.driver.execute(_RESET)
                    await taken.connection.commit()
                taken.is_wiped()
            finally:
                await taken.give_back()

    async def _run(
        self, tenant: str, statement: TextClause, parameters: Mapping[str, object], deadline_seconds: float
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run a transaction of one statement in one round trip; return the names of its columns and its rows.

        Never sent twice: where the answer did not come, nobody knows whether it was done.
        """
        sql = _driver_sql(statement)
        taken = await self._take_alive(asyncio.get_running_loop().time() + deadline_seconds)
        with _refusals():
            try:
                driver = taken.driver
                cursor = driver.cursor(binary=True)
                async with driver.pipeline():
                    await driver.execute(_SET, _settings(tenant, deadline_seconds))
                    await cursor.execute(sql, parameters)
                    await driver.execute(_RESET)
                    await driver.commit()
                taken.is_wiped()
                return [column.name for column in cursor.description or ()], await cursor.fetchall()
            finally:
                await taken.give_back()

    async def _take_alive(self, deadline: float) -> _Taken:
        """Take a connection that its server has not ended, so that a restarted database costs no call."""
        try:
            taken = await self._take(deadline)
            if taken.is_ended():
                await taken.drop()
                await self._engine.dispose()
                taken = await self._take(deadline)
        except (*_UNAVAILABLE, PoolTimeoutError, TimeoutError) as exc:
            raise _unavailable() from exc
        return taken

    async def _begin(self, tenant: str, deadline_seconds: float) -> _Taken:
        """Begin a transaction. A pooled connection that died meanwhile is replaced once, so that a restarted database costs no call."""
        deadline = asyncio.get_running_loop().time() + deadline_seconds
        settings = _settings(tenant, deadline_seconds)
        try:
            try:
                return await self._begin_once(settings, deadline)
            except (psycopg.OperationalError, psycopg.InterfaceError):
                await self._engine.dispose()
                return await self._begin_once(settings, deadline)
        except (*_UNAVAILABLE, PoolTimeoutError, TimeoutError) as exc:
            raise _unavailable() from exc

    async def _begin_once(self, settings: tuple[str, str], deadline: float) -> _Taken:
        taken = await self._take(deadline)
        try:
            await taken.connection.begin()
            # One round trip for BEGIN and both settings.
            async with taken.driver.pipeline():
                await taken.driver.execute(_SET, settings)
        except BaseException:
            await taken.drop()
            raise
        return taken

    async def _take(self, deadline: float) -> _Taken:
        async with asyncio.timeout_at(deadline):
            connection = await self._engine.connect()
            driver = await _driver(connection)
        return _Taken(connection, driver, asyncio.get_running_loop().call_at(deadline, _cut, driver))

    async def _check_role(self, expected_role: str) -> None:
        async with self.session() as session:
            role = (await session.execute(_ROLE_CHECK)).mappings().one()
        name = role["rolname"]
        if role["rolsuper"] or role["rolbypassrls"] or role["reaches_unsafe"]:
            message = f"database role {name!r} ignores row-level security (superuser or BYPASSRLS); connect as {expected_role!r}"
            raise UnsafeDatabaseRoleError(message)
        if role["owns_tables"]:
            message = f"database role {name!r} owns tables; owners are for migrations only, connect as {expected_role!r}"
            raise UnsafeDatabaseRoleError(message)
        if role["rolcreaterole"] or role["rolcreatedb"] or role["rolreplication"]:
            message = f"database role {name!r} may create roles or databases, or replicate; take that away or connect as {expected_role!r}"
            raise UnsafeDatabaseRoleError(message)
        if name != expected_role or not role["plain"]:
            message = f"database role is {name!r} and this process must be {expected_role!r}; change the user of the database URL"
            raise UnsafeDatabaseRoleError(message)


class TenantStatements:
    """Statements of one tenant, each a transaction of its own that takes one round trip. From `Database.statements`.

    A lock that a statement takes ends on the server, however long this process is busy with something else meanwhile.
    """

    def __init__(
        self, run: Callable[..., Awaitable[tuple[list[str], list[tuple[Any, ...]]]]], tenant: str, deadline_seconds: float
    ) -> None:
        self._run = run
        self._tenant = tenant
        self._deadline_seconds = deadline_seconds

    async def execute(self, statement: TextClause, parameters: Mapping[str, object]) -> Result[Any]:
        """Run a statement. Where it fails before its answer came, nobody knows whether it was done.

        Raises:
            RefusalError: as `Database.tenant_session`.
        """
        names, rows = await self._run(self._tenant, statement, parameters, self._deadline_seconds)
        return IteratorResult(SimpleResultMetaData(names), iter(rows))


@dataclass(frozen=True, slots=True)
class _Taken:
    """A connection out of the pool, which is cut at its deadline."""

    connection: AsyncConnection
    driver: psycopg.AsyncConnection[Any]
    timer: asyncio.TimerHandle

    def is_ended(self) -> bool:
        """Tell whether the server has said anything since it was used: to an idle connection, that it is over."""
        poll = select.poll()
        poll.register(self.driver.pgconn.socket, select.POLLIN)
        return bool(poll.poll(0))

    def is_wiped(self) -> None:
        """Note that the last transaction reset every setting and was committed."""
        sync = self.connection.sync_connection
        if sync is not None:
            sync.info[_WIPED] = True

    async def drop(self) -> None:
        """Close it for good."""
        self.timer.cancel()
        await self.connection.invalidate()
        await _close(self.connection)

    async def give_back(self) -> None:
        """Hand it to the pool."""
        await _close(self.connection)
        self.timer.cancel()


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the driver and SQLAlchemy raise into refusals."""
    try:
        yield
    except _UNAVAILABLE as exc:
        raise _unavailable() from exc
    except (SQLAlchemyError, psycopg.Error) as exc:
        _log.error("statement refused", extra=_facts(exc))
        raise RefusalError(Reason.INTERNAL, "The registry refused a statement; the operator's log says which.") from exc


def _checked(tenant_id: TenantId | str) -> str:
    # SECURITY: "" and "*" are no tenant ids; nothing but the policies' own words decides about rows without tenant.
    if not is_tenant_id(tenant_id):
        raise RefusalError(Reason.INVALID_REQUEST, "The tenant id is malformed; it is 1 to 128 of A-Z a-z 0-9 . _ -.")
    return tenant_id


def _settings(tenant: str, deadline_seconds: float) -> tuple[str, str]:
    return tenant, str(max(1, int(deadline_seconds * 1000 * _STATEMENT_SHARE)))


@lru_cache(maxsize=_STATEMENTS)
def _driver_sql(statement: TextClause) -> bytes:
    """Return a statement as the driver takes it; parameters keep their names."""
    return str(statement.compile(dialect=_DIALECT)).encode()


def _facts(exc: Exception) -> dict[str, str]:
    """Return what an operator needs to find a refused statement. The server's words may hold a tenant's values, so they stay out."""
    cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
    facts = {"error": type(cause).__name__}
    if isinstance(cause, psycopg.Error):
        named = {"sqlstate": cause.sqlstate, "table": cause.diag.table_name, "constraint": cause.diag.constraint_name}
        facts |= {name: value for name, value in named.items() if value}
    return facts


def _unavailable() -> RefusalError:
    return RefusalError(Reason.REGISTRY_UNAVAILABLE, "The registry does not answer; try again.")


def _build_engine(url: str, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        _psycopg_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=DEADLINE_SECONDS,
        pool_recycle=1_800,
        pool_reset_on_return=None,  # `_wipe` does it.
        hide_parameters=True,  # Values belong to tenants and must not reach a log by way of an exception.
        connect_args={
            "connect_timeout": 2,
            "application_name": "extrunner",
            "options": f"-c timezone=UTC -c idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION_MS}",
        },
    )
    event.listen(engine.sync_engine, "reset", _wipe)
    return engine


def _psycopg_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # SECURITY: from None, because the library's message may repeat the URL with its password.
        message = "the database URL cannot be read; write postgresql+psycopg://role:password@host/database"
        raise UnsafeDatabaseRoleError(message) from None
    if parsed.drivername not in {"postgresql", "postgresql+psycopg"}:
        message = f"the database URL begins with {parsed.drivername!r}; it must begin with postgresql+psycopg"
        raise UnsafeDatabaseRoleError(message)
    return parsed.set(drivername="postgresql+psycopg")


def _wipe(dbapi_connection: Any, record: ConnectionPoolEntry, state: PoolResetState) -> None:
    """Roll back and forget every setting before the connection is anybody else's."""
    if record.info.pop(_WIPED, False) or state.terminate_only:
        return
    dbapi_connection.rollback()
    # SECURITY: outside a transaction, or the rollback of the next one would bring the settings back.
    dbapi_connection.autocommit = True
    cursor = dbapi_connection.cursor()
    cursor.execute("RESET ALL")
    cursor.close()
    dbapi_connection.autocommit = False


async def _driver(connection: AsyncConnection) -> psycopg.AsyncConnection[Any]:
    driver = (await connection.get_raw_connection()).driver_connection
    if not isinstance(driver, psycopg.AsyncConnection):  # pragma: no cover - the URL's driver is fixed above
        message = "the engine does not use psycopg"
        raise TypeError(message)
    return driver


def _cut(driver: psycopg.AsyncConnection[Any]) -> None:
    """End a connection whose server is silent.

    Cancelling the task instead would make psycopg ask that same server to cancel, and wait for it.
    """
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(driver.pgconn.socket)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


async def _close(connection: AsyncConnection) -> None:
    """Return the connection even if the caller is being cancelled; a connection that cannot be wiped is dropped by the pool."""
    with suppress(SQLAlchemyError, psycopg.Error):
        await asyncio.shield(connection.close())
