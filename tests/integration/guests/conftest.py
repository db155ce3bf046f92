"""A daemon with the probing guests of both toolchains and worlds: everything granted for one tenant, nothing for the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from extrunner.runner.v1 import execution_pb2, runner_service_pb2
from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MIB, LimitWishes
from registry.domain.records import ExecutionRecord
from registry.migrations.roles import ADMIN
from registry.services.executions import ExecutionQuery
from registry.services.installing import InstallService, InstallView
from registry.tokens import RUNNER_AUDIENCE, TokenMinter
from runnerd.capabilities.catalog import FUNCTIONS
from scripts.demonstration.samples import CACHE
from tests.fakes.daemon_process import ISSUER, Running, make_empty_machine, publish, started
from tests.fakes.dispatch_kit import OTHER_TENANT, TENANT
from tests.fakes.probe_guests import GUESTS, Answer, ProbeGuest, build_probe, read_answer, write_call
from tests.fakes.probe_table import SETTINGS, USER, Probe, Surroundings

CAPABILITIES = sorted({function.capability for function in FUNCTIONS})
MANIFEST = {
    "capabilities": CAPABILITIES,
    "api": {"endpoints": [{"method": "POST", "path": "/probe", "handler": "probe"}]},
}


LIMITS = LimitWishes(wall_time_ms=30_000, cpu_time_ms=10_000, fuel=50_000_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a guest said of some calls, and how it ended."""

    answers: Sequence[Answer]
    execution_id: str


@dataclass(slots=True, kw_only=True)
class Probed:
    """The daemon and the installs on it."""

    daemon: Running
    database: Database
    installs: Mapping[tuple[str, str], InstallView]

    def around(self, guest: ProbeGuest, tenant: str = TENANT) -> Surroundings:
        view = self.installs[tenant, guest.name]
        return Surroundings(tenant_id=tenant, install_id=view.install_id, extension_id=guest.name, version_id=view.version_id)

    async def ask(self, guest: ProbeGuest, probes: Sequence[Probe], *, tenant: str = TENANT, user: bool = True) -> Told:
        """Have a guest make all calls in one execution."""
        body = json.dumps([write_call(probe.function, probe.arguments, times=probe.times) for probe in probes]).encode()
        answer = await self.send(guest, "/probe", body, tenant=tenant, user=user)
        told = json.loads(answer.completed.body)
        answers = [read_answer(guest, probe.function, one) for probe, one in zip(probes, told, strict=True)]
        return Told(answers=answers, execution_id=answer.execution_id)

    async def send(self, guest: ProbeGuest, path: str, body: bytes, *, tenant: str = TENANT, user: bool = True) -> Any:
        who = execution_pb2.User(**USER) if user else None
        request = execution_pb2.ExecuteRequest(
            context=execution_pb2.Context(request_id="probe", tenant_id=tenant, extension_id=guest.name, user=who),
            http=execution_pb2.HttpRequest(method="POST", path=path, body=body),
        )
        minter = TokenMinter(self.daemon.machine.folder / "keys" / "services.private.jwk", issuer=ISSUER, audience=RUNNER_AUDIENCE)
        token = minter.mint("test", ttl_seconds=60, scope="execute assert-user", tenants=[tenant])
        answer = await self.daemon.stub.Execute(request, metadata=[("authorization", f"Bearer {token}")], timeout=60)
        assert answer.WhichOneof("outcome") == "completed", answer
        assert answer.completed.status == 200
        return answer

    async def record_of(self, told: Told, tenant: str = TENANT) -> ExecutionRecord:
        """Return the record of an execution, once it is written."""
        for _ in range(300):
            try:
                return await ExecutionQuery(self.database).get_execution(tenant, told.execution_id)
            except RefusalError as refusal:
                if refusal.reason is not Reason.NOT_FOUND:
                    raise
                await asyncio.sleep(0.1)
        message = "the execution was not recorded"
        raise AssertionError(message)


def keeping_artifacts() -> dict[str, str]:
    """Name a folder in which the daemons of one test run after another find what was compiled: that takes longer than all the probes."""
    folder = CACHE / "probe-artifacts"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "RUNNERD_CACHE_DIR": str(folder),
        "RUNNERD_ARTIFACTS__KEY_FILE": str(folder / "artifacts.ed25519"),
        "RUNNERD_ARTIFACTS__CACHE_BYTES": str(1024 * MIB),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def probed(module_database_urls: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Probed]:
    folder = tmp_path_factory.mktemp("probed")
    database = await Database.connect(module_database_urls[ADMIN], expected_role=ADMIN)
    try:
        machine = await make_empty_machine(folder, module_database_urls, database)
        installs: dict[tuple[str, str], InstallView] = {}
        for guest in GUESTS:
            machine.hashes[guest.name] = await publish(machine, database, build_probe(guest, MANIFEST, folder / "guests"))
            for tenant, granted in ((TENANT, CAPABILITIES), (OTHER_TENANT, [])):
                installs[tenant, guest.name] = await InstallService(database).install(
                    tenant, guest.name, granted=granted, config=SETTINGS, limits=LIMITS, actor="test"
                )
        async with started(machine, **keeping_artifacts()) as daemon:
            for digest in machine.hashes.values():
                await daemon.stub.Warm(runner_service_pb2.WarmRequest(content_hash=digest), metadata=daemon.metadata(), timeout=180)
            yield Probed(daemon=daemon, database=database, installs=installs)
    finally:
        await database.aclose()
