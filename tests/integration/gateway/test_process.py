"""`ext-gateway` as a process: what it refuses to start with, which face it shows, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.migrations.roles import ADMIN, RUNNER
from registry.provenance.dev_trust import DevTrust
from registry.tokens import GATEWAY_AUDIENCE, TokenMinter, generate_key_set
from tests.fakes.fake_runner import FakeRunner, completed

USERS = "https://users.dev.invalid"
EXTENSION_URL = "/api/ext/com.example.notes/x"
_PATIENCE_SECONDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Settings of a development machine."""

    environment: dict[str, str]
    users: TokenMinter

    def bearer(self, *roles: str, tenant: str = "t1") -> dict[str, str]:
        return {"authorization": f"Bearer {self.users.mint('u1', ttl_seconds=300, tenant=tenant, roles=list(roles))}"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    users, services = generate_key_set(tmp_path, "users"), generate_key_set(tmp_path, "services")
    environment = {
        "PATH": os.environ["PATH"],
        "ENV": "development",
        "GATEWAY_PORT": "0",
        "GATEWAY_SERVICE__PRIVATE_JWK_FILE": str(services.private_jwk_file),
        "GATEWAY_SERVICE__ISSUER": "https://services.dev.invalid",
        "GATEWAY_USERS__JWKS_FILE": str(users.jwks_file),
        "GATEWAY_USERS__ISSUER": USERS,
    }
    return Machine(environment=environment, users=TokenMinter(users.private_jwk_file, issuer=USERS, audience=GATEWAY_AUDIENCE))


@pytest.fixture
def admin_settings(tmp_path: Path, database_urls: Mapping[str, str]) -> dict[str, str]:
    url_file = tmp_path / "admin.url"
    url_file.write_text(database_urls[ADMIN])
    return {
        "GATEWAY_ADMIN__DATABASE_URL_FILE": str(url_file),
        "GATEWAY_ADMIN__BUNDLE_STORE": str(tmp_path / "bundles"),
        "GATEWAY_ADMIN__TRUST_DOMAINS_FILE": str(DevTrust.init(tmp_path / "trust").trust_domains_path),
        "GATEWAY_ADMIN__WORK_DIR": str(tmp_path / "work"),
    }


@dataclass(slots=True)
class Running:
    process: asyncio.subprocess.Process
    base: str

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def running(machine: Machine, *arguments: str, **settings: str) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *arguments, env={**machine.environment, **settings}, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    said: list[str] = []
    drain: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                line = (await process.stderr.readline()).decode()
                said.append(line)
                assert line, "".join(said)
                event: dict[str, Any] = json.loads(line)
                if event.get("event") == "listening":
                    found = re.search(r"\('127\.0\.0\.1', (\d+)\)", event["addresses"][0])
                    assert found is not None
                    break
        drain = asyncio.create_task(process.stderr.read())
        yield Running(process, f"http://127.0.0.1:{found[1]}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if drain is not None:
            await drain


def started(machine: Machine, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Start what must not start."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env={**machine.environment, **settings},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
    )


async def test_invoke_only__calls_and_no_admin(machine: Machine) -> None:
    async with (
        FakeRunner() as runner,
        running(machine, GATEWAY_RUNNER__TARGET=runner.target) as gateway,
        httpx.AsyncClient(base_url=gateway.base) as client,
    ):
        runner.answer = completed(body=b"hello")
        assert (await client.get(EXTENSION_URL, headers=machine.bearer("ext:invoke"))).content == b"hello"
        for path in (
            "/api/admin/v1/installs",
            "/api/admin/v1/publishers",
            "/api/admin/v1/openapi.json",
            "/console",
            "/docs",
            "/openapi.json",
        ):
            answer = await client.get(path, headers=machine.bearer("ext:operate", tenant="*"))
            assert (answer.status_code, answer.json()["reason"]) == (404, "NOT_FOUND")
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert 'extrunner_gateway_requests_total{method="GET",route="/api/ext/{extension_id}/{path}",status="200"} 1.0' in metrics
        assert "com.example" not in metrics
        assert await gateway.stop() == 0


def test_invoke_only__does_not_load_what_writes_the_registry() -> None:
    program = (
        "import sys, gateway.__main__, gateway.routes.extensions, gateway.routes.health; "
        "print([name for name in sys.modules if name.split('.')[0] in {'sqlalchemy', 'psycopg', 'sigstore', 'wasmtime', 'alembic'} "
        "or name.startswith(('registry.services', 'registry.repositories', 'gateway.routes.admin.'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=True)
    assert done.stdout.strip() == "[]"


async def test_all__both_faces(machine: Machine, admin_settings: dict[str, str]) -> None:
    async with (
        FakeRunner() as runner,
        running(machine, "--serve", "all", GATEWAY_RUNNER__TARGET=runner.target, **admin_settings) as gateway,
        httpx.AsyncClient(base_url=gateway.base) as client,
    ):
        made = await client.post("/api/admin/v1/publishers", json={"name": "example"}, headers=machine.bearer("ext:operate", tenant="*"))
        assert made.status_code == 201
        assert (await client.get(EXTENSION_URL, headers=machine.bearer("ext:invoke"))).status_code == 200
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert await gateway.stop() == 0


async def test_admin_only__no_calls(machine: Machine, admin_settings: dict[str, str]) -> None:
    async with (
        running(machine, "--serve", "admin", **admin_settings) as gateway,
        httpx.AsyncClient(base_url=gateway.base) as client,
    ):
        answer = await client.get(EXTENSION_URL, headers=machine.bearer("ext:invoke"))
        assert (answer.status_code, answer.json()["reason"]) == (404, "NOT_FOUND")
        assert (await client.get("/api/admin/v1/installs", headers=machine.bearer("ext:read"))).json()["items"] == []


async def test_no_runner__not_ready_but_alive(machine: Machine) -> None:
    async with (
        running(machine, GATEWAY_RUNNER__TARGET="127.0.0.1:1") as gateway,
        httpx.AsyncClient(base_url=gateway.base) as client,
    ):
        assert (await client.get("/healthz")).status_code == 200
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (await client.get("/readyz")).status_code != 503:  # noqa: ASYNC110 - the other end is a process.
                await asyncio.sleep(0.05)
        assert (await client.get("/readyz")).json() == {"status": "unavailable", "missing": ["runner"]}


async def test_sigterm__finishes_what_runs(machine: Machine) -> None:
    async with (
        FakeRunner() as runner,
        running(machine, GATEWAY_RUNNER__TARGET=runner.target) as gateway,
        httpx.AsyncClient(base_url=gateway.base, timeout=_PATIENCE_SECONDS) as client,
    ):
        released = asyncio.Event()

        async def slow(_: object) -> Any:
            await released.wait()
            return completed(body=b"finished")

        runner.answer = slow
        call = asyncio.create_task(client.get(EXTENSION_URL, headers=machine.bearer("ext:invoke")))
        await runner.started.wait()
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert not call.done()
        released.set()
        assert (await call).content == b"finished"
        async with asyncio.timeout(_PATIENCE_SECONDS):
            assert await gateway.process.wait() == 0


class TestRefusesToStart:
    def test_development_keys_in_production(self, machine: Machine) -> None:
        done = started(machine, ENV="production")
        assert done.returncode == 1
        assert "development key" in done.stderr
        assert "Traceback" not in done.stderr

    def test_unknown_setting(self, machine: Machine) -> None:
        done = started(machine, GATEWAY_LIMIT__REQUEST_BYTES="1")
        assert done.returncode == 2
        assert "GATEWAY_LIMIT__REQUEST_BYTES" in done.stderr

    def test_missing_keys(self, machine: Machine, tmp_path: Path) -> None:
        done = started(machine, GATEWAY_USERS__JWKS_FILE=str(tmp_path / "none"))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr

    def test_wrong_database_role(self, machine: Machine, admin_settings: dict[str, str], database_urls: Mapping[str, str]) -> None:
        Path(admin_settings["GATEWAY_ADMIN__DATABASE_URL_FILE"]).write_text(database_urls[RUNNER])
        done = started(machine, "--serve", "admin", **admin_settings)
        assert done.returncode == 1
        assert "ext_admin" in done.stderr
        assert "Traceback" not in done.stderr

    def test_no_database(self, machine: Machine, admin_settings: dict[str, str], tmp_path: Path) -> None:
        Path(admin_settings["GATEWAY_ADMIN__DATABASE_URL_FILE"]).write_text(f"postgresql+psycopg://ext_admin:hunter2@/x?host={tmp_path}")
        done = started(machine, "--serve", "admin", **admin_settings)
        assert done.returncode == 1
        assert "hunter2" not in done.stderr
        assert "Traceback" not in done.stderr

    def test_admin_settings_in_an_invoke_process(self, machine: Machine, admin_settings: dict[str, str]) -> None:
        done = started(machine, "--serve", "invoke", **admin_settings)
        assert done.returncode == 2
        assert "must not be given" in done.stderr
