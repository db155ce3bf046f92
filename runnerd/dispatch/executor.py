"""The use case: one authenticated call from request to outcome (DESIGN §4).

1. authority: tenant, trigger and user against the credential
2. the install, from the registry, never from the caller
3. endpoint, policy and roles
4. limits: operator ≥ grant ≥ request, endpoint and deadline
5. admission: fair, bounded, within the deadline
6. the verified, compiled extension
7. a worker of this tenant, unless its version is paused; a call that had not started when its worker died is sent once more (T28)
8. the record and the metrics, whatever the end
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

import structlog

from registry.domain.digests import ContentHash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import ExecutionId, TenantId, new_id
from registry.domain.limits import ExecutionLimits, LimitWishes, clamp
from registry.domain.records import Endpoint, ExecutionRecord, ResolvedInstall
from registry.logs import correlated
from runnerd.artifacts.loaded import CompiledExtension
from runnerd.capabilities.denials import explain_denial
from runnerd.capabilities.grants import REQUEST_BYTES, RESPONSE_BYTES, InvocationGrant
from runnerd.capabilities.writes import WriteLedger
from runnerd.dispatch.admission import Admission, Place
from runnerd.dispatch.authority import Authority, authorise
from runnerd.dispatch.breaker import CircuitBreaker, Passage, TenantVersion
from runnerd.dispatch.calls import CallNotes
from runnerd.dispatch.connection import CallReport, WorkerDiedError
from runnerd.dispatch.endpoints import UNDECLARED, admit
from runnerd.dispatch.outcome import OUTCOME_NAMES, Completed, Usage, reason_of
from runnerd.dispatch.pool import WorkerPool
from runnerd.dispatch.request import Caller, ExecutionRequest, ExecutionResult, Trigger
from runnerd.dispatch.start import Invocation
from runnerd.dispatch.verdict import WorkerInternalError
from runnerd.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)
_ERROR = "error"
_REMEMBERED_LIMITS = 1024
_CANCELLED = "CANCELLED"
_NOTHING = Usage(wall_us=0, queue_us=0, cpu_us=0, fuel=0, peak_memory_bytes=None, host_calls=0)


class Installs(Protocol):
    """Resolves installs (`registry.services.resolution.Resolver`)."""

    async def resolve(
        self,
        tenant_id: TenantId | str,
        extension_ref: str,
        *,
        install_id: str | None = None,
        version_id: str | None = None,
        content_hash: str | None = None,
    ) -> ResolvedInstall:
        """Return what runs for a tenant, or raise RefusalError."""


class Extensions(Protocol):
    """Makes code ready (`runnerd.artifacts.loader.ExtensionLoader`)."""

    async def load(self, content_hash: ContentHash, *, wait_seconds: float | None = None) -> CompiledExtension:
        """Return a verified extension that a worker can map, or raise RefusalError."""


class Recorder(Protocol):
    """Takes rows of the execution log (`registry.services.executions.ExecutionRecorder`)."""

    def check_room(self) -> None:
        """Refuse before a call runs what could not be recorded after it."""

    def record(self, record: ExecutionRecord) -> None:
        """Take a row; never waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSettings:
    """Operator limits and patience."""

    defaults: ExecutionLimits
    ceiling: ExecutionLimits
    queue_seconds: float = 5.0
    """How long a call may wait for a place and a worker, where its own deadline is later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A call that may run: everything but a worker."""

    request: ExecutionRequest
    install: ResolvedInstall
    authority: Authority
    endpoint: Endpoint | None
    limits: ExecutionLimits
    deadline: float | None
    received: float
    patience: float
    """Until when it may wait, on the clock of `time.monotonic()`."""
    place: Place
    execution_id: ExecutionId
    notes: CallNotes = field(default_factory=CallNotes)
    """What it logs and is denied, up to its end whatever that is. A call that is sent twice had said nothing the first time."""
    used: Counter[str] = field(default_factory=Counter)
    """Of `InvocationGrant.used`: kept here, so that it is known however the call ends."""


class Executor:
    """Runs calls.

    Args:
        installs: resolves what runs for a tenant.
        extensions: makes its code ready.
        admission: decides who may run now.
        pool: has the workers.
        breaker: pauses versions that end their workers.
        recorder: takes execution records.
        metrics: counts.
        settings: operator limits.
    """

    def __init__(  # noqa: PLR0913 - the composition root hands over its parts once
        self,
        *,
        installs: Installs,
        extensions: Extensions,
        admission: Admission,
        pool: WorkerPool,
        breaker: CircuitBreaker,
        recorder: Recorder,
        metrics: Metrics,
        settings: ExecutorSettings,
    ) -> None:
        self._installs = installs
        self._extensions = extensions
        self._admission = admission
        self._pool = pool
        self._breaker = breaker
        self._recorder = recorder
        self._metrics = metrics
        self._settings = settings
        # A pure function of few different values; callers' wishes may be many, so there is a bound.
        self._clamped = lru_cache(maxsize=_REMEMBERED_LIMITS)(self._clamp)

    async def execute(self, caller: Caller, request: ExecutionRequest, *, deadline: float | None) -> ExecutionResult:
        """Run one call.

        Args:
            caller: verified.
            request: validated.
            deadline: of the caller, on the clock of `time.monotonic()`; None where it gave none.

        Raises:
            RefusalError: any reason of the catalog that `RunnerService.Execute` lists.
        """
        received = time.monotonic()
        authority = authorise(caller, request)  # (1)
        if request.idempotency_key:
            detail = "idempotency_key is not available yet; leave it out."
            raise RefusalError(Reason.INVALID_REQUEST, detail, metadata={"field": "idempotency_key"})
        _check_generated_headers(request)
        pins = request.pins
        install = await self._installs.resolve(  # (2)
            request.tenant_id,
            request.extension,
            install_id=pins.install_id,
            version_id=pins.version_id,
            content_hash=pins.content_hash,
        )
        http = request.http
        endpoint = admit(  # (3)
            install.endpoints, install.endpoint_policy, method=http.method, path=http.path, roles=authority.roles
        )
        if endpoint is None:
            self._metrics.undeclared_endpoint()
        limits = self._limits(install, endpoint, request)  # (4)
        patience = self._patience(received, deadline)
        prepared = _Prepared(
            request=request,
            install=install,
            authority=authority,
            endpoint=endpoint,
            limits=limits,
            deadline=deadline,
            received=received,
            patience=patience,
            place=self._admission.enter(install.tenant_id, install.install_id, deadline=patience),
            execution_id=ExecutionId(new_id()),
        )
        with correlated(
            extension_id=install.extension_id,
            install_id=install.install_id,
            version=install.version,
            content_hash=install.content_hash,
            execution_id=prepared.execution_id,
        ):
            async with prepared.place:  # (5)
                return await self._admitted(prepared)

    async def _admitted(self, prepared: _Prepared) -> ExecutionResult:
        half = None if prepared.deadline is None else max(0.0, (prepared.deadline - time.monotonic()) / 2)
        extension = await self._extensions.load(prepared.install.content_hash, wait_seconds=half)  # (6)
        # Loading may have taken long where nobody set a deadline; waiting for a worker begins now.
        patience = max(prepared.patience, time.monotonic() + 1.0) if prepared.deadline is None else prepared.patience
        self._recorder.check_room()
        started_at = datetime.now(UTC)
        try:
            report = await self._dispatched(prepared, extension, patience)  # (7)
        except asyncio.CancelledError:
            self._failed(prepared, started_at, _CANCELLED)
            raise
        except WorkerDiedError as error:
            self._failed(prepared, started_at, Reason.WORKER_CRASHED)
            started = str(error.started).lower()
            raise RefusalError(
                Reason.WORKER_CRASHED, "The worker process ended while it held this call.", metadata={"started": started}
            ) from error
        except WorkerInternalError as error:
            _log.error("worker_could_not_run_call", detail=str(error))
            self._failed(prepared, started_at, Reason.INTERNAL)
            raise RefusalError(Reason.INTERNAL, "The worker could not run the call; the log has it under the request id.") from error
        self._metrics.call_path(bridged=extension.bridged)
        self._ended(prepared, started_at, report)  # (8)
        return ExecutionResult(
            outcome=report.outcome,
            usage=report.usage,
            execution_id=prepared.execution_id,
            version_id=prepared.install.version_id,
            content_hash=prepared.install.content_hash,
        )

    async def _dispatched(self, prepared: _Prepared, extension: CompiledExtension, patience: float) -> CallReport:
        """Run a call in a worker; once more where the worker ended before the call had started and had no effect."""
        try:
            return await self._attempt(prepared, extension, patience)
        except WorkerDiedError as error:
            if error.started or error.had_host_calls:
                raise
        return await self._attempt(prepared, extension, patience)

    async def _attempt(self, prepared: _Prepared, extension: CompiledExtension, patience: float) -> CallReport:
        with self._breaker.admit(TenantVersion(prepared.install.tenant_id, prepared.install.version_id)) as passage:
            return await self._in_a_worker(prepared, extension, patience, passage)

    async def _in_a_worker(self, prepared: _Prepared, extension: CompiledExtension, patience: float, passage: Passage) -> CallReport:
        install = prepared.install
        apart = install.version_id if passage.alone else ""
        async with self._pool.worker_for(
            tenant_id=install.tenant_id, install_id=install.install_id, deadline=patience, apart=apart
        ) as worker:
            now = time.monotonic()
            limits = _within_deadline(prepared, now)
            deadline = now + limits.wall_time_ms / 1000
            invocation = Invocation(
                extension=extension,
                grant=_grant(prepared, deadline),
                limits=limits,
                http=prepared.request.http,
                deadline=deadline,
                queue_us=round((now - prepared.received) * 1e6),
                place=prepared.place,
                notes=prepared.notes,
            )
            report = await worker.run(invocation)
            if worker.is_usable:
                passage.survived()
            return report

    def _limits(self, install: ResolvedInstall, endpoint: Endpoint | None, request: ExecutionRequest) -> ExecutionLimits:
        limits = self._clamped(install.limits, None if endpoint is None else endpoint.timeout_ms, request.wishes)
        if request.http.body is not None and len(request.http.body) > limits.request_bytes:
            raise RefusalError(
                Reason.PAYLOAD_TOO_LARGE,
                f"The body is larger than the {limits.request_bytes} bytes that this install accepts.",
                metadata={"field": "http.body", "limit": str(limits.request_bytes)},
            )
        return limits

    def _clamp(self, grant: LimitWishes, timeout_ms: int | None, wishes: LimitWishes) -> ExecutionLimits:
        limits = clamp(defaults=self._settings.defaults, ceiling=self._settings.ceiling, grant=grant, wishes=wishes)
        if timeout_ms is None:
            return limits
        # What the author asks for only ever lowers, too.
        return clamp(defaults=limits, ceiling=limits, grant=LimitWishes(), wishes=LimitWishes(wall_time_ms=max(1, timeout_ms)))

    def _patience(self, received: float, deadline: float | None) -> float:
        patience = received + self._settings.queue_seconds
        if deadline is not None:
            if deadline <= time.monotonic():
                raise _too_late()
            patience = min(patience, deadline)
        return patience

    def _ended(self, prepared: _Prepared, started_at: datetime, report: CallReport) -> None:
        outcome = OUTCOME_NAMES[type(report.outcome)]
        self._metrics.execution(outcome, prepared.request.trigger.value)
        self._metrics.usage(outcome, report.usage)
        record = _record(
            prepared,
            started_at,
            outcome,
            report.usage,
            reason=reason_of(report.outcome),
            http_status=report.outcome.status if isinstance(report.outcome, Completed) else None,
        )
        _log.info("execution", outcome=outcome, reason=record.reason, wall_ms=record.wall_ms, queue_ms=record.queue_ms, fuel=record.fuel)
        self._hand_on(prepared, record)

    def _failed(self, prepared: _Prepared, started_at: datetime, reason: str) -> None:
        self._metrics.execution(_ERROR, prepared.request.trigger.value)
        _log.warning("execution_failed", reason=str(reason))
        usage = replace(
            _NOTHING,
            wall_us=max(0, round((datetime.now(UTC) - started_at).total_seconds() * 1e6)),
            egress_request_bytes=prepared.used[REQUEST_BYTES],
            egress_response_bytes=prepared.used[RESPONSE_BYTES],
        )
        self._hand_on(prepared, _record(prepared, started_at, _ERROR, usage, reason=str(reason)))

    def _hand_on(self, prepared: _Prepared, record: ExecutionRecord) -> None:
        for capability in prepared.notes.ungranted:
            self._metrics.denial(capability)
        try:
            self._recorder.record(record)
        except RefusalError:
            # The call has run; its caller gets the outcome. What is lost is counted and logged with its ids.
            self._metrics.record_lost()
            _log.exception("execution_record_lost", outcome=record.outcome)


def _too_late() -> RefusalError:
    return RefusalError(Reason.DEADLINE_EXCEEDED, "The deadline passed before the extension ran; allow more time.")


def _within_deadline(prepared: _Prepared, now: float) -> ExecutionLimits:
    """Lower the wall time to what the caller's deadline leaves.

    Raises:
        RefusalError: DEADLINE_EXCEEDED.
    """
    if prepared.deadline is None:
        return prepared.limits
    left_ms = int((prepared.deadline - now) * 1000)
    if left_ms <= 0:
        raise _too_late()
    return prepared.limits if left_ms >= prepared.limits.wall_time_ms else replace(prepared.limits, wall_time_ms=left_ms)


def _grant(prepared: _Prepared, deadline: float) -> InvocationGrant:
    install = prepared.install
    return InvocationGrant(
        tenant_id=install.tenant_id,
        install_id=install.install_id,
        extension_id=install.extension_id,
        extension_name=install.extension_name,
        version_id=install.version_id,
        request_id=prepared.request.request_id,
        capabilities=install.capabilities,
        declared=install.declared,
        granted=install.granted,
        config=install.config,
        user=prepared.authority.user,
        deadline=deadline,
        egress=install.egress,
        used=prepared.used,
        follows_event=prepared.request.trigger is Trigger.EVENT,
        event_id=prepared.request.event_id,
        writes=WriteLedger(_origin(prepared)),
        storage=prepared.limits.storage,
    )


def _origin(prepared: _Prepared) -> str:
    """Return what identifies an invocation to those who must recognise its repetition.

    An event that is delivered again leads to the same invocation again; what has no event is repeated by nobody but this daemon, under the
    same execution id.
    """
    install, request = prepared.install, prepared.request
    if request.event_id is None:
        return str(prepared.execution_id)
    return f"event\n{install.tenant_id}\n{install.install_id}\n{request.event_id}\n{request.http.method}\n{request.http.path}"


def _record(  # noqa: PLR0913 - the keywords are the facts that only some calls have
    prepared: _Prepared,
    started_at: datetime,
    outcome: str,
    usage: Usage,
    *,
    reason: str | None,
    http_status: int | None = None,
) -> ExecutionRecord:
    install, request, user, notes = prepared.install, prepared.request, prepared.authority.user, prepared.notes
    return ExecutionRecord(
        execution_id=prepared.execution_id,
        tenant_id=install.tenant_id,
        install_id=install.install_id,
        extension_id=install.extension_id,
        version_id=install.version_id,
        content_hash=install.content_hash,
        request_id=request.request_id,
        trigger=request.trigger.value,
        method=request.http.method,
        endpoint=prepared.endpoint.path if prepared.endpoint is not None else UNDECLARED,
        user_id=user.user_id if user is not None else None,
        outcome=outcome,
        reason=reason,
        http_status=http_status,
        started_at=started_at,
        wall_ms=usage.wall_us // 1000,
        queue_ms=usage.queue_us // 1000,
        cpu_ms=usage.cpu_us // 1000,
        fuel=usage.fuel,
        peak_memory_bytes=usage.peak_memory_bytes,
        host_calls=usage.host_calls,
        egress_request_bytes=usage.egress_request_bytes,
        egress_response_bytes=usage.egress_response_bytes,
        denials=(*(_denial(install, capability) for capability in sorted(notes.ungranted)), *notes.denials),
        log=tuple(notes.log),
    )


def _denial(install: ResolvedInstall, capability: str) -> Mapping[str, str]:
    return explain_denial(capability, declared=install.declared, granted=install.granted)


def _check_generated_headers(request: ExecutionRequest) -> None:
    """Refuse generated headers that contradict the request: a guest believes them."""
    if not request.http.headers:
        return
    wanted = {"x-alga-tenant": str(request.tenant_id), "x-alga-extension": request.extension}
    for name, value in request.http.headers:
        if wanted.get(name, value) != value:
            raise RefusalError(Reason.INVALID_REQUEST, f"{name} contradicts the request's context.", metadata={"field": "http.headers"})
