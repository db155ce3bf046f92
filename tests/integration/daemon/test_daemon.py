"""`runnerd` as it is started in earnest: PostgreSQL, signatures, compiler, hardened workers, gRPC; and its end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from extrunner.runner.v1 import execution_pb2, runner_service_pb2, runner_service_pb2_grpc
from registry import migrations
from registry.bundles.local import LocalBundleStore
from registry.database import Database
from registry.domain.digests import ContentHash, content_hash
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import ADMIN, OWNER, RUNNER
from registry.provenance.dev_trust import DevTrust
from registry.provenance.verifier import BundleVerifier, load_trust_domains
from registry.repositories.executions import ExecutionRepository
from registry.services.installing import InstallService
from registry.services.publishers import PublisherService
from registry.services.publishing import PublishingService
from registry.services.revocations import RevocationService
from registry.tokens import GATEWAY_AUDIENCE, RUNNER_AUDIENCE, TokenMinter, generate_key_set
from tests.fakes.archives import make_bundle
from tests.fakes.dispatch_kit import OTHER_TENANT, TENANT, eventually
from tests.fakes.postgres import admin_database, database_urls, postgres_cluster
from tests.fakes.wat_guests import HELLO, LOOP, component

__all__ = ["admin_database", "database_urls", "postgres_cluster"]
ALICE = "https://dev.invalid/people/alice"
ISSUER = "https://services.dev.invalid"


@dataclass(slots=True, kw_only=True)
class Machine:
    """A folder with everything that a daemon needs, and two published extensions."""

    folder: Path
    urls: Mapping[str, str]
    hashes: dict[str, ContentHash]

    def environment(self, **changes: str) -> dict[str, str]:
        keys = self.folder / "keys"
        return {
            "PATH": os.environ["PATH"],
            "ENV": "development",
            "RUNNERD_GRPC__ADDRESS": "127.0.0.1:0",
            "RUNNERD_OPS__ADDRESS": "127.0.0.1:0",
            "RUNNERD_ASSETS__ADDRESS": "127.0.0.1:0",
            "RUNNERD_DATABASE__URL_FILE": str(self.folder / "url"),
            "RUNNERD_TRUST_DOMAINS_FILE": str(self.folder / "trust" / "trust_domains.json"),
            "RUNNERD_OBJECT_STORE_URL": f"file://{self.folder / 'bundles'}",
            "RUNNERD_CACHE_DIR": str(self.folder / "cache"),
            "RUNNERD_ARTIFACTS__KEY_FILE": str(keys / "artifacts.ed25519"),
            "RUNNERD_SERVICES__JWKS_FILE": str(keys / "services.jwks.json"),
            "RUNNERD_SERVICES__ISSUER": ISSUER,
            "RUNNERD_USERS__JWKS_FILE": str(keys / "users.jwks.json"),
            "RUNNERD_USERS__ISSUER": ISSUER,
            "RUNNERD_WORKERS__FLOOR": "1",
            "RUNNERD_WORKERS__CEILING": "4",
            **changes,
        }


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def make_machine(folder: Path, urls: Mapping[str, str], database: Database) -> Machine:
    prepare(folder, urls[RUNNER])
    trust = DevTrust.init(folder / "trust")
    verifier = BundleVerifier(load_trust_domains(trust.trust_domains_path, environment="development"))
    publishers = PublisherService(database)
    await publishers.create("example", "operator")
    await publishers.add_signer("example", trust.signer(ALICE), "operator")
    store = LocalBundleStore(folder / "bundles")
    publishing = PublishingService(database=database, store=store, verifier=verifier, work_dir=folder / "work", warm=None)
    hashes = {}
    for name, code in (("hello", HELLO), ("loop", LOOP)):
        archive = make_bundle({"dist/main.wasm": component(code)}, name=f"com.example.{name}")
        hashes[name] = content_hash(archive)
        await publishing.publish(pieces(archive), trust.sign(hashes[name], ALICE), actor="test")
        await InstallService(database).install(TENANT, f"com.example.{name}", granted=["storage.kv"], actor="test")
    return Machine(folder=folder, urls=urls, hashes=hashes)


@dataclass(slots=True, kw_only=True)
class Running:
    """A daemon that serves."""

    process: asyncio.subprocess.Process
    ports: dict[str, int]
    stub: runner_service_pb2_grpc.RunnerServiceAsyncStub
    machine: Machine
    lines: list[dict[str, Any]]

    def metadata(self, user: str | None = None) -> list[tuple[str, str]]:
        keys = self.machine.folder / "keys"
        service = TokenMinter(keys / "services.private.jwk", issuer=ISSUER, audience=RUNNER_AUDIENCE)
        token = service.mint("test", ttl_seconds=60, scope="execute warm info", tenants=[TENANT])
        pairs = [("authorization", f"Bearer {token}")]
        if user is not None:
            minter = TokenMinter(keys / "users.private.jwk", issuer=ISSUER, audience=GATEWAY_AUDIENCE)
            pairs.append(("x-extrunner-subject-token", minter.mint(user, ttl_seconds=60, tenant=TENANT, roles=["ext:invoke"])))
        return pairs

    async def execute(self, name: str, *, tenant: str = TENANT, user: str | None = None, wall_ms: int = 0) -> Any:
        request = execution_pb2.ExecuteRequest(
            context=execution_pb2.Context(request_id="req-1", tenant_id=tenant, extension_id=f"com.example.{name}"),
            http=execution_pb2.HttpRequest(method="GET", path="/notes"),
        )
        if wall_ms:
            request.limits.wall_time.FromMilliseconds(wall_ms)
        return await self.stub.Execute(request, metadata=self.metadata(user), timeout=60)

    async def reason(self, name: str, **changes: Any) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.execute(name, **changes)
        call: Any = caught.value
        status = rpc_status.from_call(call)
        info = error_details_pb2.ErrorInfo()
        assert status is not None
        assert status.details[0].Unpack(info)
        return str(info.reason)

    async def get(self, path: str, port: str = "ops_port") -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[port])
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = (await asyncio.wait_for(reader.read(), 10)).decode()
        writer.close()
        await writer.wait_closed()
        return answer


Start = Callable[..., AbstractAsyncContextManager[Running]]


@asynccontextmanager
async def started(machine: Machine, **changes: str) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "runnerd", env=machine.environment(**changes), stderr=asyncio.subprocess.PIPE, limit=1 << 20
    )
    assert process.stderr is not None
    lines: list[dict[str, Any]] = []

    async def read() -> dict[str, int]:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            lines.append(json.loads(line))
            if lines[-1]["event"] == "serving":
                return {name: lines[-1][name] for name in ("grpc_port", "ops_port", "assets_port")}
        message = f"the daemon ended: {lines}"
        raise AssertionError(message)

    try:
        ports = await asyncio.wait_for(read(), 60)
        following = asyncio.create_task(_follow(process.stderr, lines))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc_port']}") as channel:
            yield Running(
                process=process, ports=ports, stub=runner_service_pb2_grpc.RunnerServiceStub(channel), machine=machine, lines=lines
            )
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 30)
        await following
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _follow(stream: asyncio.StreamReader, lines: list[dict[str, Any]]) -> None:
    while line := await stream.readline():
        lines.append(json.loads(line))


def stat_of(pid: int) -> tuple[int, str] | None:
    """Return parent and state of a process, None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[1]), fields[0]


def descendants(pid: int) -> set[int]:
    parents = {int(entry.name): stat_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}
    found: set[int] = set()
    while more := {child for child, facts in parents.items() if facts and facts[0] in {pid, *found}} - found:
        found |= more
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if (facts := stat_of(pid)) is not None and facts[1] != "Z"}


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}/environ").stat().st_uid


def prepare(folder: Path, url: str) -> None:
    folder.chmod(0o700)
    (folder / "keys").mkdir(mode=0o700)
    for name in ("services", "users"):
        generate_key_set(folder / "keys", name)
    (folder / "url").write_text(url)


@pytest.fixture
async def machine(tmp_path: Path, admin_database: Database, database_urls: Mapping[str, str]) -> Machine:
    return await make_machine(tmp_path, database_urls, admin_database)


async def test_whole_life__verify_compile_execute_record_drain(machine: Machine, admin_database: Database) -> None:
    async with started(machine) as daemon:
        assert "200 OK" in await daemon.get("/readyz")
        warm = runner_service_pb2.WarmRequest(content_hash=machine.hashes["hello"])
        warmed = await daemon.stub.Warm(warm, metadata=daemon.metadata(), timeout=60)
        assert warmed.state == runner_service_pb2.WARM_STATE_COMPILED
        answer = await daemon.execute("hello", user="u-1")
        assert answer.completed.body == b"hello"
        assert answer.content_hash == machine.hashes["hello"]
        limited = await daemon.execute("loop", wall_ms=300)
        assert limited.limit_exceeded.allowed == 300
        # Another tenant, and what is not there, look alike.
        assert await daemon.reason("hello", tenant=OTHER_TENANT) == "TENANT_FORBIDDEN"
        assert await daemon.reason("absent") == "EXTENSION_NOT_INSTALLED"

        info = await daemon.stub.GetRunnerInfo(runner_service_pb2.GetRunnerInfoRequest(), metadata=daemon.metadata())
        steps = {step.name: (step.applied, step.mandatory) for step in info.hardening}
        assert steps["seccomp"] == (True, True)
        assert (info.trust_domain, info.trust_domain_production) == ("development", False)
        assert info.workers >= 1

        metrics = await daemon.get("/metrics")
        assert 'extrunner_executions_total{outcome="completed",trigger="http"} 1.0' in metrics
        assert 'extrunner_bundle_verifications_total{result="ok"}' in metrics
        assert 'extrunner_hardening_applied{step="seccomp"} 1.0' in metrics

        page = await daemon.get(f"/ext-ui/com.example.hello/{machine.hashes['hello']}/index.html", "assets_port")
        assert "200 OK" in page
        assert "<title>Notes</title>" in page

        await RevocationService(admin_database).deny(machine.hashes["hello"], "test", "operator")
        for _ in range(60):
            try:
                await daemon.execute("hello")
            except grpc.aio.AioRpcError:
                break
            await asyncio.sleep(0.1)
        assert await daemon.reason("hello") == "HASH_DENIED"
        children = descendants(daemon.process.pid)
        assert len(children) >= 3, "zygote, worker, assets"
    assert daemon.process.returncode == 0
    assert not alive(children)
    events = [line["event"] for line in daemon.lines]
    assert events[-1] == "stopped"
    executions = [line for line in daemon.lines if line["event"] == "execution"]
    assert executions[0]["request_id"] == "req-1"
    assert executions[0]["tenant_id"] == TENANT
    assert "hunter2" not in json.dumps(daemon.lines)
    async with admin_database.tenant_session(TENANT) as session:
        rows = await ExecutionRepository(session, TENANT).list_executions(limit=200, before=None)
    assert {row.outcome for row in rows} == {"completed", "limit_exceeded"}
    assert {row.user_id for row in rows} == {"u-1", None}


async def test_interface_file_altered_on_disk__is_refused_then_written_again(machine: Machine) -> None:
    address = f"/ext-ui/com.example.hello/{machine.hashes['hello']}/index.html"
    async with started(machine) as daemon:
        served = await daemon.get(address, "assets_port")
        assert "200 OK" in served
        content = served.partition("\r\n\r\n")[2].encode()
        digest = hashlib.sha256(content).hexdigest()
        file = machine.folder / "cache" / "ui" / digest[:2] / digest
        assert file.read_bytes() == content
        file.chmod(0o600)
        file.write_bytes(b"<script>steal()</script>".ljust(len(content)))

        assert "502 " in (await daemon.get(address, "assets_port")).partition("\r\n")[0]
        answer = ""
        for _ in range(100):
            answer = await daemon.get(address, "assets_port")
            assert "steal" not in answer
            if "200 OK" in answer:
                break
            await asyncio.sleep(0.05)
        assert answer.partition("\r\n\r\n")[2].encode() == content
        assert file.read_bytes() == content


async def test_second_start__finds_the_artifact_of_the_first(machine: Machine) -> None:
    async with started(machine) as daemon:
        await daemon.execute("hello")
    async with started(machine) as daemon:
        warm = runner_service_pb2.WarmRequest(content_hash=machine.hashes["hello"])
        assert (await daemon.stub.Warm(warm, metadata=daemon.metadata(), timeout=60)).state == runner_service_pb2.WARM_STATE_CACHED
        assert (await daemon.execute("hello")).completed.body == b"hello"


async def test_sigterm__running_call_ends_and_new_ones_are_refused(machine: Machine) -> None:
    async with started(machine) as daemon:
        await daemon.execute("hello")
        running = asyncio.create_task(daemon.execute("loop", wall_ms=900))
        await asyncio.sleep(0.3)
        daemon.process.terminate()
        await asyncio.sleep(0.1)
        assert "503" in await daemon.get("/readyz")
        assert (await running).limit_exceeded.allowed == 900
    assert daemon.process.returncode == 0


async def test_sigkill__leaves_no_process(machine: Machine) -> None:
    async with started(machine) as daemon:
        await daemon.execute("hello")
        children = descendants(daemon.process.pid)
        daemon.process.send_signal(signal.SIGKILL)
        await daemon.process.wait()
        await eventually(lambda: not alive(children), seconds=10)


async def test_daemon__is_not_dumpable(machine: Machine) -> None:
    async with started(machine) as daemon:
        # A process that is not dumpable belongs to root in /proc, and nobody but root may read its memory or environment. Run as root
        # this cannot be told from outside; the worker's own probe (T2) covers that case.
        owner = owner_of(daemon.process.pid)
        assert owner == 0
        assert os.getuid() == 0 or owner != os.getuid()


async def test_production__refuses_the_development_trust_domain(machine: Machine) -> None:
    production = machine.environment(ENV="production")
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "runnerd", env=production, stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode in {1, 2}
    assert b"embedded" in errors


async def test_database_outage__is_a_typed_refusal_and_the_daemon_stays_up(tmp_path: Path) -> None:
    cluster = EmbeddedPostgres(tmp_path / "pg", durable=False)
    cluster.start()
    try:
        migrations.upgrade(cluster.url(OWNER))
        database = await Database.connect(cluster.url(ADMIN), expected_role=ADMIN)
        folder = tmp_path / "machine"
        folder.mkdir()
        machine = await make_machine(folder, cluster.urls(), database)
        await database.aclose()
        async with started(machine) as daemon:
            assert (await daemon.execute("hello")).completed.status == 200
            cluster.stop()
            # What was resolved is still known for a moment; then the refusal is typed, and the daemon stays up.
            for _ in range(80):
                try:
                    await daemon.execute("hello")
                except grpc.aio.AioRpcError:
                    break
                await asyncio.sleep(0.1)
            assert await daemon.reason("hello") == "REGISTRY_UNAVAILABLE"
            assert "200 OK" in await daemon.get("/readyz")
    finally:
        cluster.stop()
