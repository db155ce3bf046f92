"""The record of what ran: written in batches behind the calls, read by the tenant's administrators.

While there is room a database outage neither blocks calls nor loses rows; when there is none, calls are refused (OVERLOADED) rather than
run unrecorded. What guests logged goes first (at 80 % of its budget), and most explanations of what they were refused with it; rows never.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Final

from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId, is_uuid
from registry.domain.limits import MIB
from registry.domain.records import ExecutionRecord
from registry.repositories.executions import ExecutionRepository
from registry.services.pages import checked_limit, decode_cursor, encode_cursor

_BATCH_ROWS: Final = 500
_BATCH_DEADLINE_SECONDS: Final = 5.0
_LOG_BUDGET_BYTES: Final = 64 * MIB
_LOG_SHARE: Final = 0.8
_ENTRY_BYTES: Final = 256
"""What a line or a denial takes beside its text: a guest may well write lines that are empty."""
_KEPT_DENIALS: Final = 4
"""Of a record whose log goes."""
_FIRST_RETRY_SECONDS: Final = 0.1
_LAST_RETRY_SECONDS: Final = 5.0
_DROPPED_LOG: Final[tuple[Mapping[str, str], ...]] = (
    {"level": "warn", "stream": "log", "message": "(log dropped: the recorder is behind)", "offset_us": "0"},
)
_log = logging.getLogger(__name__)


class ExecutionRecorder:
    """Takes records without waiting and writes them soon, each exactly once. Role ext_runner; one event loop.

    Args:
        database: of role ext_runner.
        max_rows: rows that may wait; beyond, `record` refuses.
        flush_interval: seconds between a record's arrival and its batch. A batch costs a transaction for each tenant in it, a
            millisecond or two of the daemon's processor however few rows it has, so short intervals are paid by every call.
    """

    def __init__(self, database: Database, *, max_rows: int = 10_000, flush_interval: float = 0.25) -> None:
        self._database = database
        self._max_rows = max_rows
        self._flush_interval = flush_interval
        self._waiting: deque[ExecutionRecord] = deque()
        self._log_bytes = 0
        self._arrived = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._rejected = 0

    @property
    def depth(self) -> int:
        """Rows that wait to be written."""
        return len(self._waiting)

    @property
    def rejected(self) -> int:
        """Rows that the database can never take; each was logged as an error. Anything but 0 is a bug."""
        return self._rejected

    def check_room(self) -> None:
        """Refuse before a call runs what could not be recorded after it.

        Raises:
            RefusalError: OVERLOADED.
        """
        if len(self._waiting) >= self._max_rows:
            raise RefusalError(Reason.OVERLOADED, "Executions cannot be recorded at the moment; try again.")

    def record(self, record: ExecutionRecord) -> None:
        """Take a record. Never waits.

        Raises:
            RefusalError: OVERLOADED: as many rows wait as may.
        """
        self.check_room()
        size = _log_size(record)
        if self._log_bytes + size > _LOG_BUDGET_BYTES * _LOG_SHARE:
            record = replace(record, log=_DROPPED_LOG, denials=record.denials[:_KEPT_DENIALS])
            size = _log_size(record)
        self._log_bytes += size
        self._waiting.append(record)
        self._arrived.set()

    async def start(self) -> None:
        """Begin writing."""
        if self._task is None:
            self._task = asyncio.create_task(self._write_forever(), name="execution-recorder")

    async def aclose(self, *, timeout_seconds: float = 5.0) -> int:
        """Write what waits, for at most `timeout_seconds`, and stop. Return how many rows could not be written."""
        self._closing.set()
        self._arrived.set()
        if self._task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._task, timeout_seconds)
            self._task = None
        if self._waiting:
            _log.error("execution log rows lost at shutdown: %d", len(self._waiting))
        return len(self._waiting)

    async def _write_forever(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        while True:
            await self._arrived.wait()
            await self._sleep(self._flush_interval)
            if await self._write_all():
                pause = _FIRST_RETRY_SECONDS
            else:
                await asyncio.sleep(min(pause, _FIRST_RETRY_SECONDS) if self._closing.is_set() else pause)
                pause = min(pause * 2, _LAST_RETRY_SECONDS)
            if not self._waiting:
                self._arrived.clear()
                if self._closing.is_set():
                    return

    async def _sleep(self, seconds: float) -> None:
        """Let a batch gather, unless nothing more will come."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _write_all(self) -> bool:
        """Write what waits now. Return False if the database is away; what was not written waits on, in its order."""
        written: list[ExecutionRecord] = []
        try:
            for batch in _by_tenant(tuple(self._waiting)):
                if not await self._write_batch(batch):
                    return False
                written += batch
            return True
        finally:
            self._forget(written)

    async def _write_batch(self, batch: Sequence[ExecutionRecord]) -> bool:
        """Write a batch. Return False if the database is away."""
        try:
            await self._write(batch)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it must not stop the recorder
            if _is_away(exc):
                return False
            await self._write_singly(batch)
        return True

    async def _write(self, batch: Sequence[ExecutionRecord]) -> None:
        tenant_id = batch[0].tenant_id
        async with self._database.tenant_session(tenant_id, deadline_seconds=_BATCH_DEADLINE_SECONDS) as session:
            await ExecutionRepository(session, tenant_id).add_batch(batch)

    async def _write_singly(self, batch: Sequence[ExecutionRecord]) -> None:
        """Write a batch in which the database refused something; one bad row must cost neither its neighbours nor those behind it."""
        for record in batch:
            while True:
                try:
                    await self._write([record])
                except Exception as exc:  # noqa: BLE001 - as above
                    if _is_away(exc):
                        await asyncio.sleep(_FIRST_RETRY_SECONDS)
                        continue
                    self._rejected += 1
                    # SECURITY: no traceback: the driver's text may repeat the failing row. What the database refused is in its own line.
                    _log.error("execution %s cannot be recorded: %s", record.execution_id, type(exc).__name__)
                break

    def _forget(self, batch: Sequence[ExecutionRecord]) -> None:
        written = {record.execution_id for record in batch}
        self._log_bytes -= sum(_log_size(record) for record in batch)
        self._waiting = deque(record for record in self._waiting if record.execution_id not in written)


class ExecutionQuery:
    """Reads the execution log of a tenant. Role ext_admin."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_executions(
        self, tenant_id: TenantId | str, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[tuple[ExecutionRecord, ...], str | None]:
        """Return a page of executions, newest first, and the cursor of the next one.

        Raises:
            RefusalError: INVALID_REQUEST (tenant, cursor, limit), REGISTRY_UNAVAILABLE.
        """
        before = None if cursor is None else _position(cursor)
        async with self._database.tenant_session(tenant_id) as session:
            found = await ExecutionRepository(session, tenant_id).list_executions(limit=checked_limit(limit) + 1, before=before)
        page = found[:limit]
        return page, encode_cursor(page[-1].started_at.isoformat(), page[-1].execution_id) if len(found) > limit else None

    async def get_execution(self, tenant_id: TenantId | str, execution_id: str) -> ExecutionRecord:
        """Return one execution of the tenant.

        Raises:
            RefusalError: NOT_FOUND (also for another tenant's), REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            record = await ExecutionRepository(session, tenant_id).find(execution_id)
        if record is None:
            raise RefusalError(Reason.NOT_FOUND, "There is no such execution; it may not be written yet, or be older than the log is kept.")
        return record


def _is_away(exc: Exception) -> bool:
    return isinstance(exc, RefusalError) and exc.reason is Reason.REGISTRY_UNAVAILABLE


def _by_tenant(records: Sequence[ExecutionRecord]) -> list[list[ExecutionRecord]]:
    """Sort records into batches of one tenant, in the order in which tenants first appear."""
    gathered: dict[str, list[ExecutionRecord]] = {}
    for record in records:
        gathered.setdefault(record.tenant_id, []).append(record)
    return [rows[start : start + _BATCH_ROWS] for rows in gathered.values() for start in range(0, len(rows), _BATCH_ROWS)]


def _log_size(record: ExecutionRecord) -> int:
    """Return how many bytes of memory a record's log and denials take."""
    texts = (*(line.get("message", "") for line in record.log), *(denial.get("change", "") for denial in record.denials))
    return sum(map(sys.getsizeof, texts)) + _ENTRY_BYTES * len(texts)


def _position(cursor: str) -> tuple[datetime, str]:
    moment, execution_id = decode_cursor(cursor, 2)
    try:
        started_at = datetime.fromisoformat(moment) if is_uuid(execution_id) else None
    except ValueError:
        started_at = None
    if started_at is None:
        raise RefusalError(Reason.INVALID_REQUEST, "The cursor is not one that this service gave; begin again without it.")
    return started_at, execution_id
