"""A daemon with the probing guests of both toolchains and worlds: everything granted for one tenant, nothing for the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from extrunner.runner.v1 import execution_pb2, runner_service_pb2
from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import LimitWishes
from registry.domain.records import ExecutionRecord
from registry.migrations.roles import ADMIN, OWNER, libpq_conninfo
from registry.services.executions import ExecutionQuery
from registry.services.installing import InstallService, InstallView
from registry.services.secrets import SecretWriter
from registry.tokens import RUNNER_AUDIENCE, TokenMinter
from runnerd.capabilities.catalog import FUNCTIONS
from tests.fakes.daemon_process import ISSUER, Machine, Running, make_empty_machine, publish, started
from tests.fakes.dispatch_kit import OTHER_TENANT, TENANT
from tests.fakes.placed_artifacts import place_artifact
from tests.fakes.probe_guests import GUESTS, Answer, ProbeGuest, build_probe, read_answer, write_call
from tests.fakes.probe_servers import WEB_NAME, WEB_PORTS, probe_servers
from tests.fakes.probe_table import MOST_KEYS, SECRETS, SETTINGS, USER, Probe, Surroundings
from tests.fakes.sealing import make_pair, sealer_of

CAPABILITIES = sorted({function.capability for function in FUNCTIONS})
MANIFEST = {
    "capabilities": CAPABILITIES,
    "api": {"endpoints": [{"method": "POST", "path": "/probe", "handler": "probe", "schedulable": True}]},
    "egress": [{"host": WEB_NAME, "ports": WEB_PORTS, "schemes": ["http"]}],
}


LIMITS = LimitWishes(wall_time_ms=30_000, cpu_time_ms=10_000, fuel=50_000_000_000, storage_keys=MOST_KEYS)


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
    web: str

    def around(self, guest: ProbeGuest, tenant: str = TENANT) -> Surroundings:
        view = self.installs[tenant, guest.name]
        return Surroundings(tenant_id=tenant, install_id=view.install_id, extension_id=guest.name, version_id=view.version_id, web=self.web)

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


async def seal_secrets(machine: Machine, database: Database, installs: Sequence[InstallView]) -> dict[str, str]:
    """Give each install the secrets of the table, and return the daemon's settings for opening them."""
    pair = make_pair(machine.folder, "secrets", development=True)
    writer = SecretWriter(database, sealer_of(pair))
    for view in installs:
        for name, value in SECRETS.items():
            await writer.put(view.tenant_id, view.install_id, name, value=value, actor="test")
    with psycopg.connect(libpq_conninfo(machine.urls[OWNER]), autocommit=True) as owner:
        owner.execute("update tenant_extension_install_secrets set expires_at = now() where name = 'old'")
        owner.execute("update tenant_extension_install_secrets set version = 2 where name = 'moved'")
    return {"RUNNERD_SECRETS__LOCAL__PRIVATE_KEY_FILES": json.dumps([str(pair.private_file)])}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def probed(module_database_urls: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Probed]:
    folder = tmp_path_factory.mktemp("probed")
    database = await Database.connect(module_database_urls[ADMIN], expected_role=ADMIN)
    try:
        machine = await make_empty_machine(folder, module_database_urls, database)
        installs: dict[tuple[str, str], InstallView] = {}
        for guest in GUESTS:
            bundle, component = build_probe(guest, MANIFEST, folder / "guests")
            machine.hashes[guest.name] = digest = await publish(machine, database, bundle)
            place_artifact(folder / "cache", folder / "keys" / "artifacts.ed25519", digest, component)
            for tenant, granted in ((TENANT, CAPABILITIES), (OTHER_TENANT, [])):
                installs[tenant, guest.name] = await InstallService(database).install(
                    tenant, guest.name, granted=granted, config=SETTINGS, limits=LIMITS, actor="test"
                )
        sealing = await seal_secrets(machine, database, [view for (tenant, _), view in installs.items() if tenant == TENANT])
        async with probe_servers(folder) as (web, settings), started(machine, **sealing, **settings) as daemon:
            for digest in machine.hashes.values():
                warm = runner_service_pb2.WarmRequest(content_hash=digest)
                warmed = await daemon.stub.Warm(warm, metadata=daemon.metadata(), timeout=60)
                assert warmed.state == runner_service_pb2.WARM_STATE_CACHED
            yield Probed(daemon=daemon, database=database, installs=installs, web=web)
    finally:
        await database.aclose()
