"""The daemon, put together: every part is made here, once, and handed its collaborators."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import structlog

from registry.bundles.local import LocalBundleStore
from registry.database import Database
from registry.domain.digests import ContentHash
from registry.domain.errors import Reason, RefusalError
from registry.provenance.domains import load_trust_domains
from registry.provenance.verifier import BundleVerifier
from registry.services.executions import ExecutionRecorder
from registry.services.measurements import MeasurementRecorder
from registry.services.resolution import Resolver
from registry.tokens import ClaimNames, TokenVerifier
from runnerd.artifacts.ahead import AheadChecker
from runnerd.artifacts.compiler import Compiler, CompilerSettings
from runnerd.artifacts.keys import ArtifactSigner, ArtifactVerifier, read_public_key
from runnerd.artifacts.loaded import InterfaceIndex
from runnerd.artifacts.loader import ExtensionLoader, LoaderSettings
from runnerd.artifacts.shared import Sharing, SharingSettings
from runnerd.assets.supervisor import AssetsServer
from runnerd.capability_assembly import build_broker
from runnerd.cells.commands import Commands, ignore_signals
from runnerd.cells.exposition import families
from runnerd.cells.link import Link, linked
from runnerd.config import ArtifactsSettings, Cell, RunnerdSettings, host_of, port_of
from runnerd.dispatch.admission import Admission, AdmissionLimits
from runnerd.dispatch.breaker import CircuitBreaker
from runnerd.dispatch.capacity import Capacity
from runnerd.dispatch.connection import ConnectionSettings
from runnerd.dispatch.cpus import find_cpus
from runnerd.dispatch.executor import Executor, ExecutorSettings
from runnerd.dispatch.generations import Generations
from runnerd.dispatch.host_calls import HostCallDesk
from runnerd.dispatch.pool import Isolation, PoolSettings, WorkerPool
from runnerd.dispatch.runner_info import HardeningState, RunnerInfo
from runnerd.dispatch.workers import WorkerFactory
from runnerd.engine.profile import EngineProfile, engine_fingerprint, engine_version
from runnerd.http.ops import OpsApp, OpsServer
from runnerd.rpc.intake import IntakeBudget
from runnerd.rpc.server import RpcOptions, RpcServer
from runnerd.rpc.servicer import RunnerServicer
from runnerd.telemetry.metrics import Metrics
from runnerd.worker.settings import WorkerConfig

DATABASE_ROLE: Final = "ext_runner"
RUNNING_PER_CPU: Final = 2

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A daemon that serves."""

    grpc_port: int
    ops_port: int
    assets_port: int | None
    rpc: RpcServer
    pool: WorkerPool
    generations: Generations
    metrics: Metrics


async def run(settings: RunnerdSettings) -> None:
    """Serve until SIGTERM or SIGINT; then finish what runs. A second signal does not wait. SIGHUP renews the workers.

    Raises:
        RefusalError: the database does not answer at start.
        Exception: what the parts raise when they cannot start; nothing is left running.
    """
    commands = Commands()
    with commands.from_signals():
        await _serve(settings, commands, Cell(), None)


async def run_cell(settings: RunnerdSettings, cell: Cell, control: int) -> None:
    """Serve as one of several cells, until the supervisor says so.

    Args:
        settings: of this cell.
        cell: which one.
        control: descriptor of the channel to the supervisor.

    Raises:
        Exception: as `run`.
    """
    commands = Commands()
    ignore_signals()
    async with linked(control, commands) as link:
        await _serve(settings, commands, cell, link)


async def _serve(settings: RunnerdSettings, commands: Commands, cell: Cell, link: Link | None) -> None:
    try:
        async with open_daemon(settings, cell=cell, link=link) as daemon:
            commands.serving()
            # What was made at start lives as long as the daemon; the collector need not walk it again and again between calls.
            gc.freeze()
            if link is None:
                _log.info("serving", grpc_port=daemon.grpc_port, ops_port=daemon.ops_port, assets_port=daemon.assets_port)
            else:
                link.serving(grpc_port=daemon.grpc_port, assets_port=daemon.assets_port)
            renewing = asyncio.ensure_future(_renew_at(commands.hangup, daemon))
            await commands.stops.get()
            renewing.cancel()
            await asyncio.wait({renewing})
            _log.info("draining", seconds=settings.drain_seconds)
            await _drain(daemon.rpc, settings.drain_seconds, commands.stops)
    except asyncio.CancelledError:
        if not commands.interrupted:
            raise
    _log.info("stopped")


async def _renew_at(hangup: asyncio.Event, daemon: Daemon) -> None:
    """Renew the workers at each SIGHUP; those that come meanwhile are one more."""
    while True:
        await hangup.wait()
        hangup.clear()
        await daemon.generations.renew(daemon.pool)


async def _drain(rpc: RpcServer, seconds: float, stops: asyncio.Queue[None]) -> None:
    draining = asyncio.ensure_future(rpc.drain(seconds))
    again = asyncio.ensure_future(stops.get())
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        await rpc.drain(0)
    again.cancel()
    await draining


@asynccontextmanager
async def open_daemon(settings: RunnerdSettings, *, cell: Cell, link: Link | None = None) -> AsyncIterator[Daemon]:
    """Build and start every part; on leaving, stop them in reverse order. The ops listener starts first and stops last.

    Args:
        settings: of this process.
        cell: which part of a daemon it is.
        link: to the supervisor, which then is the one that operators ask; without it this process listens itself.
    """
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        ready = _Readiness(metrics)
        ops_port = 0
        if link is None:
            ops = OpsServer(
                OpsApp(render_metrics=ready.render, is_ready=ready.ask, tokens=settings.ops.read_tokens()),
                host=host_of(settings.ops.address),
                port=port_of(settings.ops.address),
            )
            ops_port = await ops.start()
            stack.push_async_callback(ops.aclose)
        else:
            link.attach(is_ready=ready.is_ready, metrics=ready.families)

        database = await Database.connect(settings.read_database_url(), expected_role=DATABASE_ROLE, pool_size=settings.database.pool_size)
        stack.push_async_callback(database.aclose)
        resolver = Resolver(database, capability_ceiling=settings.capabilities)
        recorder = ExecutionRecorder(database)
        await recorder.start()
        stack.push_async_callback(recorder.aclose)
        measurements = MeasurementRecorder(database, on_lost=metrics.measurements_lost)
        await measurements.start()
        stack.push_async_callback(measurements.aclose)

        verifier = _verifier(settings, metrics)
        loader = _loader(settings, resolver=resolver, verifier=verifier, metrics=metrics)
        stack.push_async_callback(loader.aclose)
        capacity = Capacity.find(settings, cell)
        generations = await Generations.start(lambda: _factory(settings, cell), metrics)
        stack.push_async_callback(generations.aclose)
        breaker = CircuitBreaker(metrics)
        desk = HostCallDesk(await build_broker(settings, database, measurements, metrics, stack), metrics)
        pool = _pool(settings, capacity, generations, desk=desk, breaker=breaker, metrics=metrics)
        stack.push_async_callback(pool.aclose)
        await pool.start()

        admission = Admission(_admission_limits(settings, capacity), settings.admission.weights)
        executor = Executor(
            installs=resolver,
            extensions=loader,
            admission=admission,
            pool=pool,
            breaker=breaker,
            recorder=recorder,
            metrics=metrics,
            settings=ExecutorSettings(
                defaults=settings.limits.effective_defaults,
                ceiling=settings.limits.effective_ceiling,
                queue_seconds=settings.admission.queue_seconds,
            ),
        )
        describe = _Description(settings, cell, pool=pool, breaker=breaker, capacity=capacity, verifier=verifier)
        metrics.engine(engine_version(), engine_fingerprint(_profile(settings)))
        servicer = RunnerServicer(executor=executor, warm=loader.warm, describe=describe, budget=_budget(settings))
        rpc = _rpc(settings, cell, servicer, metrics)

        assets = await _assets(settings, resolver, loader)
        if assets is not None:
            stack.push_async_callback(assets.aclose)
        grpc_port = await rpc.start()
        stack.push_async_callback(rpc.drain, 0)
        ready.attach(pool=pool, admission=admission, breaker=breaker, rpc=rpc)
        await rpc.serve()
        ahead = AheadChecker(loader, is_busy=lambda: pool.state().in_use > 0)
        stack.push_async_callback(ahead.aclose)
        ahead.start()
        yield Daemon(
            grpc_port=grpc_port,
            ops_port=ops_port,
            assets_port=None if assets is None else assets.port,
            rpc=rpc,
            pool=pool,
            generations=generations,
            metrics=metrics,
        )


class _Readiness:
    """What operators ask; knows nothing until the daemon is up."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._pool: WorkerPool | None = None
        self._admission: Admission | None = None
        self._breaker: CircuitBreaker | None = None
        self._rpc: RpcServer | None = None

    def attach(self, *, pool: WorkerPool, admission: Admission, breaker: CircuitBreaker, rpc: RpcServer) -> None:
        """Tell what to look at."""
        self._pool, self._admission, self._breaker, self._rpc = pool, admission, breaker, rpc

    def is_ready(self) -> bool:
        """Serving, and a worker is alive."""
        return self._rpc is not None and self._rpc.health.is_serving and self._pool is not None and bool(self._pool.workers)

    async def ask(self) -> bool:
        """As `is_ready`, for the listener."""
        return self.is_ready()

    async def render(self) -> bytes:
        """Return the metrics as a page, with the gauges as of now."""
        self._look()
        return self._metrics.render()

    def families(self) -> list[Any]:
        """Return the metrics for the supervisor, with the gauges as of now."""
        self._look()
        return families(self._metrics.registry)

    def _look(self) -> None:
        if self._pool is not None and self._admission is not None:
            state = self._pool.state()
            self._metrics.pool(workers=state.workers, slots=state.slots, in_use=state.in_use)
            self._metrics.admission(waiting=self._admission.waiting, running=self._admission.running)
        if self._breaker is not None:
            self._breaker.forget_old()


class _Description:
    """Answers GetRunnerInfo."""

    def __init__(  # noqa: PLR0913 - everything that it describes
        self,
        settings: RunnerdSettings,
        cell: Cell,
        *,
        pool: WorkerPool,
        breaker: CircuitBreaker,
        capacity: Capacity,
        verifier: BundleVerifier,
    ) -> None:
        self._cell = cell
        self._breaker = breaker
        self._ceiling = settings.limits.effective_ceiling
        self._fingerprint = engine_fingerprint(_profile(settings))
        self._workers_max = capacity.ceiling
        self._pool = pool
        domains = verifier.domains
        self._trust_domain = ",".join(domain.name for domain in domains)
        self._production = bool(domains) and all(domain.production for domain in domains)

    def __call__(self) -> RunnerInfo:
        """Describe the daemon as of now."""
        state = self._pool.state()
        steps = sorted(state.hardening.items())
        return RunnerInfo(
            version=package_version(),
            engine_version=engine_version(),
            engine_fingerprint=self._fingerprint,
            workers=state.workers,
            slots=state.slots,
            workers_max=self._workers_max,
            ceiling=self._ceiling,
            hardening=tuple(_hardening(name, applied) for name, applied in steps),
            trust_domain=self._trust_domain,
            trust_domain_production=self._production,
            cell=self._cell.index,
            cells=self._cell.count,
            generation=self._pool.generation,
            circuits_open=self._breaker.open,
        )


def _hardening(name: str, applied: bool) -> HardeningState:  # noqa: FBT001 - an item of a mapping
    return HardeningState(name=name, applied=applied, mandatory=name in WorkerFactory.mandatory_hardening)


def package_version() -> str:
    """Return the version of this build."""
    return metadata.version("extrunner")


def _verifier(settings: RunnerdSettings, metrics: Metrics) -> BundleVerifier:
    # SECURITY: refuses a development root unless the environment is development.
    domains = load_trust_domains(settings.trust_domains_file, environment=settings.environment.value)
    production = bool(domains) and all(domain.production for domain in domains)
    metrics.trust_domain(production=production)
    if not production:
        _log.warning("development_trust_domain", hint="signatures of this domain prove nothing; never run tenants' data on it")
    return BundleVerifier(domains)


def _loader(settings: RunnerdSettings, *, resolver: Resolver, verifier: BundleVerifier, metrics: Metrics) -> ExtensionLoader:
    profile = _profile(settings)
    fingerprint = engine_fingerprint(profile)
    artifacts = settings.artifacts
    signer = ArtifactSigner.from_file(artifacts.key_file)
    compiler = CompilerSettings(
        concurrency=artifacts.compilers,
        wall_seconds=artifacts.compile_seconds,
        require_hardening=settings.require_hardening,
        profile=profile,
    )
    return ExtensionLoader(
        LoaderSettings(
            cache_folder=settings.cache_dir,
            engine_fingerprint=fingerprint,
            loaded_bytes=artifacts.loaded_bytes,
            artifact_cache_bytes=artifacts.cache_bytes,
            interface_cache_bytes=artifacts.interface_cache_bytes,
            sharing=SharingSettings(
                sharing=Sharing(artifacts.sharing),
                transfer_seconds=artifacts.shared_transfer_seconds,
                wait_seconds=artifacts.shared_wait_seconds,
            ),
        ),
        resolver=resolver,
        store=LocalBundleStore(settings.object_store_folder),
        verifier=verifier,
        compiler=Compiler(compiler, engine_fingerprint=fingerprint),
        signer=signer,
        records=_records(artifacts, signer),
        metrics=metrics,
    )


def _records(artifacts: ArtifactsSettings, signer: ArtifactSigner) -> ArtifactVerifier:
    previous = artifacts.previous_public_key_file
    files = (*(() if previous is None else (previous,)), *artifacts.fleet_public_key_files)
    return ArtifactVerifier(signer.public_key(), *(read_public_key(file) for file in files))


async def _factory(settings: RunnerdSettings, cell: Cell) -> WorkerFactory:
    """Start what makes one generation's workers, on the CPUs that are ours by now."""
    profile = _profile(settings)
    config = WorkerConfig(
        slots=settings.workers.slots,
        fuel=profile.fuel,
        bridge=profile.bridge,
        memory_bytes=settings.limits.effective_defaults.memory_bytes,
        require_hardening=settings.require_hardening,
    )
    return await WorkerFactory.start(config, cpus=find_cpus(settings.workers.pin).part(cell.index, cell.count))


def _profile(settings: RunnerdSettings) -> EngineProfile:
    return EngineProfile(fuel=settings.fuel, bridge=settings.bridge)


def _pool(  # noqa: PLR0913 - the parts of a pool
    settings: RunnerdSettings,
    capacity: Capacity,
    generations: Generations,
    *,
    desk: HostCallDesk,
    breaker: CircuitBreaker,
    metrics: Metrics,
) -> WorkerPool:
    workers = settings.workers
    return WorkerPool(
        generations.fork,
        desk=desk,
        breaker=breaker,
        settings=PoolSettings(
            floor=capacity.floor,
            ceiling=capacity.ceiling,
            slots=workers.slots,
            spread=capacity.cpus.usable,
            memory=capacity.memory,
            isolation=Isolation(workers.isolation),
            mandatory_hardening=WorkerFactory.mandatory_hardening if settings.require_hardening else frozenset(),
            idle_seconds=workers.idle_seconds,
            max_calls=workers.max_calls,
        ),
        connection=ConnectionSettings(
            build=package_version(), engine_fingerprint=engine_fingerprint(_profile(settings)), grace_seconds=workers.grace_seconds
        ),
        metrics=metrics,
    )


def _admission_limits(settings: RunnerdSettings, capacity: Capacity) -> AdmissionLimits:
    admission = settings.admission
    return AdmissionLimits(
        slots=capacity.ceiling * settings.workers.slots,
        running=admission.running or RUNNING_PER_CPU * capacity.cpus.usable,
        per_tenant=admission.per_tenant,
        per_install=admission.per_install,
        waiting=admission.waiting,
        waiting_per_tenant=admission.waiting_per_tenant,
    )


def _budget(settings: RunnerdSettings) -> IntakeBudget:
    return IntakeBudget(settings.grpc.request_bytes_in_flight)


def _rpc(settings: RunnerdSettings, cell: Cell, servicer: RunnerServicer, metrics: Metrics) -> RpcServer:
    grpc, ceiling = settings.grpc, settings.limits.effective_ceiling
    strict = settings.is_production
    services = TokenVerifier(
        settings.services.jwks_file,
        audience=settings.services.audience,
        issuer=settings.services.issuer,
        refuse_development_keys=strict,
    )
    users, claims = None, ClaimNames()
    if settings.users is not None:
        claims = ClaimNames(tenant=settings.users.tenant_claim, subject=settings.users.subject_claim, roles=settings.users.roles_claim)
        users = TokenVerifier(
            settings.users.jwks_file, audience=settings.users.audience, issuer=settings.users.issuer, refuse_development_keys=strict
        )
    options = RpcOptions(
        address=grpc.address,
        request_bytes_ceiling=ceiling.request_bytes,
        response_bytes_ceiling=ceiling.response_bytes,
        tls_certificate=grpc.tls_certificate_file,
        tls_key=grpc.tls_key_file,
        reflection=grpc.reflection,
        max_concurrent_rpcs=grpc.max_concurrent_rpcs,
        share_port=not cell.is_alone,
        claims=claims,
    )
    return RpcServer(options, servicer=servicer, services=services, users=users, metrics=metrics)


async def _assets(settings: RunnerdSettings, resolver: Resolver, loader: ExtensionLoader) -> AssetsServer | None:
    if not settings.assets.enabled:
        return None

    async def interface_of(extension: str, content_hash: str) -> InterfaceIndex | None:
        if not await resolver.is_interface_served(extension, content_hash):
            if await resolver.denied(content_hash):
                raise RefusalError(Reason.HASH_DENIED, "This content was revoked.")
            return None
        return await loader.interface(ContentHash(content_hash))

    server = AssetsServer(
        host=host_of(settings.assets.address),
        port=port_of(settings.assets.address),
        root=_interface_folder(settings.cache_dir),
        resolve=interface_of,
        require_hardening=settings.require_hardening,
        frame_ancestors=settings.assets.frame_ancestors,
        discard=loader.discard_interface,
    )
    await server.start()
    return server


def _interface_folder(cache_dir: Path) -> Path:
    return cache_dir / "ui"
