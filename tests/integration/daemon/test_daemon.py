"""`runnerd` as it is started in earnest: PostgreSQL, signatures, compiler, hardened workers, gRPC; and its end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import grpc

from extrunner.runner.v1 import runner_service_pb2
from registry import migrations
from registry.database import Database
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import ADMIN, OWNER
from registry.repositories.executions import ExecutionRepository
from registry.services.revocations import RevocationService
from tests.fakes.daemon_process import Machine, alive, descendants, make_machine, owner_of, started
from tests.fakes.dispatch_kit import OTHER_TENANT, TENANT, eventually


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
