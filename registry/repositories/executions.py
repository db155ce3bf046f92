"""The execution log and the usage sums of one tenant."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import RowMapping, text

from registry.database import Session
from registry.domain.digests import ContentHash
from registry.domain.ids import ExecutionId, ExtensionId, InstallId, TenantId, VersionId
from registry.domain.records import ExecutionRecord
from registry.repositories.searchable import uuid_or_none

_MIB: Final = 1024 * 1024
# One statement: rows that are new are logged, and only those are counted, so that a repeated batch changes nothing.
# `unnest`, because COPY is refused under row-level security.
_INSERT: Final = text(
    """
with inserted as (
    insert into extension_execution_log as l (
        tenant_id, id, started_at, finished_at, install_id, registry_id, version_id, content_hash, request_id, trigger, method,
        endpoint, user_id, status, error, http_status, metrics, denials, log)
    select :tenant_id, r.*
      from unnest(
        cast(:ids as uuid[]), cast(:started_at as timestamptz[]), cast(:finished_at as timestamptz[]), cast(:install_ids as uuid[]),
        cast(:extension_ids as uuid[]), cast(:version_ids as uuid[]), cast(:content_hashes as text[]), cast(:request_ids as text[]),
        cast(:triggers as text[]), cast(:methods as text[]), cast(:endpoints as text[]), cast(:user_ids as text[]),
        cast(:statuses as text[]), cast(:errors as text[]), cast(:http_statuses as integer[]), cast(:metrics as jsonb[]),
        cast(:denials as jsonb[]), cast(:logs as jsonb[])
      ) as r
    on conflict (tenant_id, started_at, id) do nothing
    returning l.registry_id, l.started_at, l.metrics
), used as (
    insert into extension_quota_usage as q (tenant_id, registry_id, window_start, cpu_ms, mem_mb_ms, invocations, egress_bytes)
    select :tenant_id, registry_id, date_trunc('hour', started_at, 'UTC'), sum((metrics ->> 'cpu_ms')::bigint),
           sum((metrics ->> 'mem_mb_ms')::bigint), count(*),
           sum((metrics ->> 'egress_request_bytes')::bigint + (metrics ->> 'egress_response_bytes')::bigint)
      from inserted group by registry_id, date_trunc('hour', started_at, 'UTC') order by 2, 3
    on conflict (tenant_id, registry_id, window_start) do update
       set cpu_ms = q.cpu_ms + excluded.cpu_ms, mem_mb_ms = q.mem_mb_ms + excluded.mem_mb_ms,
           invocations = q.invocations + excluded.invocations, egress_bytes = q.egress_bytes + excluded.egress_bytes
     where q.tenant_id = :tenant_id
)
select count(*) from inserted
"""
)
_SELECT: Final = """
select l.tenant_id, l.id::text as id, l.started_at, l.install_id::text as install_id, l.registry_id::text as extension_id,
       l.version_id::text as version_id, l.content_hash, l.request_id, l.trigger, l.method, l.endpoint, l.user_id, l.status, l.error,
       l.http_status, l.metrics, l.denials, l.log
  from extension_execution_log l where l.tenant_id = :tenant_id
"""
_LIST: Final = text(
    _SELECT
    + """ and (cast(:before_time as timestamptz) is null
               or (l.started_at, l.id) < (cast(:before_time as timestamptz), cast(:before_id as uuid)))
          order by l.started_at desc, l.id desc limit :limit"""
)
_FIND: Final = text(_SELECT + " and l.id = cast(:id as uuid) limit 1")


class ExecutionRepository:
    """Tables `extension_execution_log` and `extension_quota_usage` of one tenant. Writing: ext_runner; reading: ext_admin."""

    def __init__(self, session: Session, tenant_id: TenantId | str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add_batch(self, records: Sequence[ExecutionRecord]) -> int:
        """Log executions and count what they used, each exactly once by its id. Return how many were new.

        Every record must be this tenant's: the row is written under the repository's tenant whatever the record says.
        """
        inserted = await self._session.execute(_INSERT, {"tenant_id": self._tenant_id, **_columns(records)})
        return int(inserted.scalar_one())

    async def list_executions(self, *, limit: int, before: tuple[datetime, str] | None) -> tuple[ExecutionRecord, ...]:
        """Return executions, newest first, beginning below `before` (start and id)."""
        before_time, before_id = (None, None) if before is None else before
        parameters = {"tenant_id": self._tenant_id, "before_time": before_time, "before_id": before_id, "limit": limit}
        rows = await self._session.execute(_LIST, parameters)
        return tuple(_record(row) for row in rows.mappings())

    async def find(self, execution_id: str) -> ExecutionRecord | None:
        """Return one execution."""
        found = await self._session.execute(_FIND, {"tenant_id": self._tenant_id, "id": uuid_or_none(execution_id)})
        row = found.mappings().first()
        return None if row is None else _record(row)


def _columns(records: Sequence[ExecutionRecord]) -> dict[str, list[Any]]:
    return {
        "ids": [record.execution_id for record in records],
        "started_at": [record.started_at for record in records],
        "finished_at": [record.started_at + timedelta(milliseconds=record.wall_ms + record.queue_ms) for record in records],
        "install_ids": [record.install_id for record in records],
        "extension_ids": [record.extension_id for record in records],
        "version_ids": [record.version_id for record in records],
        "content_hashes": [record.content_hash for record in records],
        "request_ids": [_text(record.request_id) for record in records],
        "triggers": [_text(record.trigger) for record in records],
        "methods": [_text(record.method) for record in records],
        "endpoints": [_text(record.endpoint) for record in records],
        "user_ids": [None if record.user_id is None else _text(record.user_id) for record in records],
        "statuses": [record.outcome for record in records],
        "errors": [None if record.reason is None else _text(record.reason) for record in records],
        "http_statuses": [record.http_status for record in records],
        "metrics": [json.dumps(_metrics(record)) for record in records],
        "denials": [_json(record.denials) for record in records],
        "logs": [_json(record.log) for record in records],
    }


def _metrics(record: ExecutionRecord) -> dict[str, int | None]:
    return {
        "wall_ms": record.wall_ms,
        "queue_ms": record.queue_ms,
        "cpu_ms": record.cpu_ms,
        "fuel": record.fuel,
        "peak_memory_bytes": record.peak_memory_bytes,
        "mem_mb_ms": (record.peak_memory_bytes or 0) * record.wall_ms // _MIB,
        "host_calls": record.host_calls,
        "egress_request_bytes": record.egress_request_bytes,
        "egress_response_bytes": record.egress_response_bytes,
    }


def _text(value: str) -> str:
    # What guests log may hold what PostgreSQL's text cannot: NUL and half surrogate pairs. One such line must not cost the row.
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _json(documents: Sequence[Mapping[str, str]]) -> str:
    return json.dumps([{_text(name): _text(value) for name, value in document.items()} for document in documents])


def _record(row: RowMapping) -> ExecutionRecord:
    metrics = row["metrics"]
    return ExecutionRecord(
        execution_id=ExecutionId(row["id"]),
        tenant_id=TenantId(row["tenant_id"]),
        install_id=InstallId(row["install_id"]),
        extension_id=ExtensionId(row["extension_id"]),
        version_id=VersionId(row["version_id"]),
        content_hash=ContentHash(row["content_hash"]),
        request_id=row["request_id"],
        trigger=row["trigger"],
        method=row["method"],
        endpoint=row["endpoint"],
        user_id=row["user_id"],
        outcome=row["status"],
        reason=row["error"],
        http_status=row["http_status"],
        started_at=row["started_at"].astimezone(UTC),
        wall_ms=metrics["wall_ms"],
        queue_ms=metrics["queue_ms"],
        cpu_ms=metrics["cpu_ms"],
        fuel=metrics["fuel"],
        peak_memory_bytes=metrics["peak_memory_bytes"],
        host_calls=metrics["host_calls"],
        egress_request_bytes=metrics["egress_request_bytes"],
        egress_response_bytes=metrics["egress_response_bytes"],
        denials=tuple(row["denials"]),
        log=tuple(row["log"]),
    )
