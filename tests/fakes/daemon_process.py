"""A machine with everything that a daemon needs, and the daemon as it is started in earnest: a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from extrunner.runner.v1 import execution_pb2, runner_service_pb2_grpc
from registry.bundles.local import LocalBundleStore
from registry.database import Database
from registry.domain.digests import ContentHash, content_hash
from registry.migrations.roles import RUNNER
from registry.provenance.dev_trust import DevTrust
from registry.provenance.verifier import BundleVerifier, load_trust_domains
from registry.repositories.installs import InstallView
from registry.services.installing import InstallService
from registry.services.publishers import PublisherService
from registry.services.publishing import PublishingService
from registry.tokens import GATEWAY_AUDIENCE, RUNNER_AUDIENCE, TokenMinter, generate_key_set
from tests.fakes.archives import make_bundle
from tests.fakes.dispatch_kit import TENANT
from tests.fakes.wat_guests import HELLO, LOOP, component

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
            # Whatever machine this runs on.
            "RUNNERD_CELLS": "1",
            "RUNNERD_WORKERS__FLOOR": "1",
            "RUNNERD_WORKERS__CEILING": "4",
            **changes,
        }


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def make_machine(folder: Path, urls: Mapping[str, str], database: Database) -> Machine:
    machine = await make_empty_machine(folder, urls, database)
    for name, code in (("hello", HELLO), ("loop", LOOP)):
        await add_extension(machine, database, name, component(code))
    return machine


async def make_empty_machine(folder: Path, urls: Mapping[str, str], database: Database) -> Machine:
    """Make a machine on which Alice may publish, and has published nothing."""
    prepare(folder, urls[RUNNER])
    trust = DevTrust.init(folder / "trust")
    publishers = PublisherService(database)
    await publishers.create("example", "operator")
    await publishers.add_signer("example", trust.signer(ALICE), "operator")
    return Machine(folder=folder, urls=urls, hashes={})


async def add_extension(
    machine: Machine,
    database: Database,
    name: str,
    wasm: bytes,
    *,
    capabilities: Sequence[str] = ("storage.kv",),
    granted: Sequence[str] | None = None,
) -> InstallView:
    """Publish com.example.<name> and install it for the tenant, with every capability that it asks for unless fewer are granted."""
    archive = make_bundle({"dist/main.wasm": wasm}, name=f"com.example.{name}", capabilities=list(capabilities))
    machine.hashes[name] = await publish(machine, database, archive)
    wanted = capabilities if granted is None else granted
    return await InstallService(database).install(TENANT, f"com.example.{name}", granted=wanted, actor="test")


async def publish(machine: Machine, database: Database, archive: bytes) -> ContentHash:
    """Publish a bundle that Alice signs."""
    trust = DevTrust.open(machine.folder / "trust")
    verifier = BundleVerifier(load_trust_domains(trust.trust_domains_path, environment="development"))
    store = LocalBundleStore(machine.folder / "bundles")
    publishing = PublishingService(database=database, store=store, verifier=verifier, work_dir=machine.folder / "work", warm=None)
    digest = content_hash(archive)
    await publishing.publish(pieces(archive), trust.sign(digest, ALICE), actor="test")
    return digest


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
        token = service.mint("test", ttl_seconds=60, scope="execute warm info trigger:event assert-user", tenants=[TENANT])
        pairs = [("authorization", f"Bearer {token}")]
        if user is not None:
            minter = TokenMinter(keys / "users.private.jwk", issuer=ISSUER, audience=GATEWAY_AUDIENCE)
            pairs.append(("x-extrunner-subject-token", minter.mint(user, ttl_seconds=60, tenant=TENANT, roles=["ext:invoke"])))
        return pairs

    async def execute(
        self, name: str, *, tenant: str = TENANT, user: str | None = None, wall_ms: int = 0, follows: str | None = None
    ) -> Any:
        """Call an extension; `follows` is the id of the event that leads to it, empty where an event does that nobody names."""
        request = execution_pb2.ExecuteRequest(
            context=execution_pb2.Context(request_id="req-1", tenant_id=tenant, extension_id=f"com.example.{name}"),
            http=execution_pb2.HttpRequest(method="GET", path="/notes"),
        )
        if follows is not None:
            request.trigger, request.event_id = execution_pb2.TRIGGER_EVENT, follows
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
