"""What a dispatcher needs around it, in memory: installs, code, a broker, a recorder, callers; and the whole put together."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from registry.domain.digests import ContentHash, content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import ExtensionId, InstallId, PublisherId, TenantId, VersionId, new_id
from registry.domain.limits import OPERATOR_CEILING, OPERATOR_DEFAULTS, LimitWishes
from registry.domain.records import Endpoint, ExecutionRecord, LoadableBundle, ResolvedInstall
from registry.tokens import ServiceToken
from runnerd.artifacts.loaded import CompiledExtension
from runnerd.artifacts.records import ArtifactStatement
from runnerd.artifacts.sealed import seal_bytes
from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.results import HostResult, failed, succeeded
from runnerd.dispatch.admission import Admission, AdmissionLimits
from runnerd.dispatch.breaker import BreakerSettings, CircuitBreaker
from runnerd.dispatch.connection import ConnectionSettings, WorkerProcess
from runnerd.dispatch.executor import Executor, ExecutorSettings
from runnerd.dispatch.host_calls import HostCallDesk
from runnerd.dispatch.pool import PoolSettings, WorkerPool
from runnerd.dispatch.request import Caller, ExecutionRequest, GuestRequest
from runnerd.telemetry.metrics import Metrics
from tests.fakes.fake_worker import BUILD, FINGERPRINT

TENANT = TenantId("tenant-a")
OTHER_TENANT = TenantId("tenant-b")
CAPABILITIES = frozenset({"context.read", "log.emit", "config.read", "storage.kv"})
ALL_SCOPES = frozenset({"execute", "warm", "info", "assert-user", "trigger:event", "trigger:schedule"})


def make_extension(code: bytes = b"native code", *, memories: int = 1, bridged: bool = False) -> CompiledExtension:
    artifact = seal_bytes("test", code)
    bundle_hash = content_hash(b"bundle of " + code)
    bundle = LoadableBundle(
        content_hash=bundle_hash,
        extension_id=ExtensionId(new_id()),
        extension_name="com.example.test",
        version_id=VersionId(new_id()),
        version="1.0.0",
        runtime="wasm-component@1",
        publisher_id=PublisherId(new_id()),
        publisher="example",
        manifest_digest="sha256:" + "0" * 64,
        signers=(),
    )
    statement = ArtifactStatement(
        content_hash=bundle_hash,
        component_sha256=hashlib.sha256(b"component").hexdigest(),
        bridge_version="0",
        bridge_applied=bridged,
        engine_fingerprint=FINGERPRINT,
        artifact_sha256=artifact.sha256,
        artifact_bytes=artifact.size,
        memories=memories,
    )
    return CompiledExtension(bundle=bundle, signer="test", artifact=artifact, statement=statement)


def make_install(
    extension: CompiledExtension,
    *,
    tenant_id: TenantId = TENANT,
    endpoints: tuple[Endpoint, ...] = (),
    policy: str = "advisory",
    capabilities: frozenset[str] = CAPABILITIES,
    limits: LimitWishes | None = None,
) -> ResolvedInstall:
    bundle = extension.bundle
    return ResolvedInstall(
        tenant_id=tenant_id,
        install_id=InstallId(new_id()),
        extension_id=bundle.extension_id,
        extension_name=bundle.extension_name,
        publisher=bundle.publisher,
        version_id=bundle.version_id,
        version=bundle.version,
        content_hash=bundle.content_hash,
        runtime=bundle.runtime,
        capabilities=capabilities,
        declared=capabilities,
        granted=capabilities,
        endpoints=endpoints,
        endpoint_policy=policy,
        limits=limits or LimitWishes(),
        config={},
    )


def make_caller(*, tenants: frozenset[str] = frozenset({"*"}), scopes: frozenset[str] = ALL_SCOPES, **rest: Any) -> Caller:
    return Caller(service=ServiceToken(subject="test-service", tenants=tenants, scopes=scopes), **rest)


def make_request(
    *, tenant_id: TenantId = TENANT, method: str = "GET", path: str = "/", body: bytes | None = None, **changes: Any
) -> ExecutionRequest:
    http = GuestRequest(method=method, path=path, query="", headers=(), body=None if body is None else memoryview(body))
    fields: dict[str, Any] = {"request_id": "req-1", "tenant_id": tenant_id, "extension": "com.example.test", "http": http}
    return ExecutionRequest(**fields | changes)


class MemoryInstalls:
    """Installs by tenant and name."""

    def __init__(self) -> None:
        self.by_key: dict[tuple[str, str], ResolvedInstall] = {}
        self.failure: Exception | None = None

    def add(self, install: ResolvedInstall) -> ResolvedInstall:
        self.by_key[install.tenant_id, install.extension_name] = install
        self.by_key[install.tenant_id, install.extension_id] = install
        return install

    async def resolve(
        self,
        tenant_id: TenantId | str,
        extension_ref: str,
        *,
        install_id: str | None = None,
        version_id: str | None = None,
        content_hash: str | None = None,
    ) -> ResolvedInstall:
        if self.failure is not None:
            raise self.failure
        install = self.by_key.get((tenant_id, extension_ref))
        if install is None:
            raise RefusalError(Reason.EXTENSION_NOT_INSTALLED, "The tenant has not installed this extension.")
        if content_hash not in {None, install.content_hash}:
            raise RefusalError(Reason.PIN_MISMATCH, "The pin differs.")
        return install


class MemoryExtensions:
    """Code by content hash."""

    def __init__(self) -> None:
        self.by_hash: dict[ContentHash, CompiledExtension] = {}

    def add(self, extension: CompiledExtension) -> CompiledExtension:
        self.by_hash[extension.content_hash] = extension
        return extension

    async def load(self, content_hash: ContentHash, *, wait_seconds: float | None = None) -> CompiledExtension:
        return self.by_hash[content_hash]


class MemoryBroker:
    """Answers storage from a dictionary, and remembers who asked for what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, tuple[object, ...]]] = []
        self.stored: dict[tuple[str, str, str], bytes] = {}
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    async def call(self, grant: InvocationGrant, function: HostFunction, arguments: tuple[object, ...]) -> HostResult:
        self.calls.append((grant.tenant_id, function.qualified_name, arguments))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        if function.name == "put":
            entry: Any = arguments[0]
            self.stored[grant.tenant_id, entry["namespace"], entry["key"]] = entry["value"]
            return succeeded(entry | {"revision": 1})
        if function.name == "get" and function.interface.endswith("storage"):
            value = self.stored.get((grant.tenant_id, str(arguments[0]), str(arguments[1])))
            if value is None:
                return failed("missing")
            return succeeded({"namespace": arguments[0], "key": arguments[1], "value": value, "revision": 1})
        return failed("internal")


class MemoryRecorder:
    """Keeps records."""

    def __init__(self) -> None:
        self.records: list[ExecutionRecord] = []
        self.failure: RefusalError | None = None
        self.is_full = False

    def check_room(self) -> None:
        if self.is_full:
            raise RefusalError(Reason.OVERLOADED, "Executions cannot be recorded.")

    def record(self, record: ExecutionRecord) -> None:
        if self.failure is not None:
            raise self.failure
        self.records.append(record)


CONNECTION = ConnectionSettings(
    build=BUILD,
    engine_fingerprint=FINGERPRINT,
    hello_seconds=5.0,
    grace_seconds=0.1,
    bystander_seconds=0.5,
    stall_seconds=0.5,
    exit_seconds=0.2,
)
POOL = PoolSettings(floor=1, ceiling=4, slots=4, spread=2)


@dataclass(slots=True, kw_only=True)
class Kit:
    """A dispatcher and everything around it."""

    executor: Executor
    pool: WorkerPool
    breaker: CircuitBreaker
    admission: Admission
    installs: MemoryInstalls
    extensions: MemoryExtensions
    broker: MemoryBroker
    recorder: MemoryRecorder
    metrics: Metrics
    extension: CompiledExtension
    caller: Caller = field(default_factory=make_caller)

    def metric(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        return self.metrics.registry.get_sample_value(f"extrunner_{name}", dict(labels or {})) or 0.0


@asynccontextmanager
async def dispatching(
    fork: Callable[[], Awaitable[WorkerProcess]],
    *,
    pool: PoolSettings = POOL,
    connection: ConnectionSettings = CONNECTION,
    admission: AdmissionLimits | None = None,
    defaults: LimitWishes | None = None,
    queue_seconds: float = 2.0,
    tenants: tuple[TenantId, ...] = (TENANT, OTHER_TENANT),
    clock: Callable[[], float] = time.monotonic,
    breaker_settings: BreakerSettings | None = None,
) -> AsyncIterator[Kit]:
    """Run a dispatcher over workers from `fork`, with one extension installed for `tenants`; every process is gone afterwards."""
    metrics, broker = Metrics(), MemoryBroker()
    desk = HostCallDesk(broker, metrics)
    breaker = CircuitBreaker(metrics, breaker_settings, clock=clock)
    workers = WorkerPool(fork, desk=desk, breaker=breaker, settings=pool, connection=connection, metrics=metrics)
    installs, extensions, recorder = MemoryInstalls(), MemoryExtensions(), MemoryRecorder()
    extension = extensions.add(make_extension())
    for tenant in tenants:
        installs.add(make_install(extension, tenant_id=tenant))
    changes = {name: value for name in OPERATOR_DEFAULTS.__slots__ if (value := getattr(defaults, name, None)) is not None}
    limits = AdmissionLimits(slots=64) if admission is None else admission
    gate = Admission(limits)
    executor = Executor(
        installs=installs,
        extensions=extensions,
        admission=gate,
        pool=workers,
        breaker=breaker,
        recorder=recorder,
        metrics=metrics,
        settings=ExecutorSettings(defaults=replace(OPERATOR_DEFAULTS, **changes), ceiling=OPERATOR_CEILING, queue_seconds=queue_seconds),
    )
    try:
        await workers.start()
        yield Kit(
            executor=executor,
            pool=workers,
            breaker=breaker,
            admission=gate,
            installs=installs,
            extensions=extensions,
            broker=broker,
            recorder=recorder,
            metrics=metrics,
            extension=extension,
        )
    finally:
        await workers.aclose()


async def eventually(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    """Wait, bounded, until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            message = "the condition did not come true in time"
            raise AssertionError(message)
        await asyncio.sleep(0.005)
