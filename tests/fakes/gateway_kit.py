"""A gateway with its keys, in this process or on a real socket, in front of a fake runner."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp

from gateway.app import GatewayParts, MountedFace, build_app
from gateway.auth import Authenticator
from gateway.http_protocol import ConnectionLimits, bounded_protocol
from gateway.middleware.body_limit import BodyAllowance
from gateway.middleware.metrics import GatewayMetrics
from gateway.routes.extensions import ExtensionPolicy, ExtensionsEndpoint
from gateway.runner_client import RunnerClient, RunnerTarget
from registry.tokens import GATEWAY_AUDIENCE, RUNNER_AUDIENCE, ClaimNames, TokenMinter, TokenVerifier, generate_key_set
from tests.fakes.fake_runner import FakeRunner

USERS = "https://users.dev.invalid"
SERVICES = "https://services.dev.invalid"
EXTENSION = "com.example.notes"
BODY_LIMIT = 64 * 1024


@dataclass(kw_only=True)
class GatewayKit:
    """What a test of the gateway needs."""

    runner: FakeRunner
    users: TokenMinter
    services: TokenVerifier
    app: ASGIApp
    metrics: GatewayMetrics
    endpoint: ExtensionsEndpoint
    runner_client: RunnerClient
    authenticator: Authenticator
    parts: GatewayParts

    def with_admin(self, face: MountedFace) -> GatewayKit:
        """The same gateway with an admin face beside the other."""
        return replace(self, app=build_app(replace(self.parts, admin=face)))

    def token(self, subject: str = "u1", *, tenant: str = "t1", roles: tuple[str, ...] = ("ext:invoke",), **claims: Any) -> str:
        return self.users.mint(subject, ttl_seconds=300, tenant=tenant, roles=list(roles), **claims)

    def bearer(self, **changes: Any) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token(**changes)}"}

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
            yield client

    @asynccontextmanager
    async def serving(self, *, header_timeout_seconds: float = 5.0, keep_alive_seconds: int = 5) -> AsyncIterator[tuple[str, int]]:
        """Serve on a loopback socket with the product's own protocol class."""
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                http=bounded_protocol(ConnectionLimits(header_timeout_seconds=header_timeout_seconds)),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=keep_alive_seconds,
                timeout_graceful_shutdown=1,
            )
        )
        task = asyncio.create_task(server._serve(sockets=[listener]))
        try:
            async with asyncio.timeout(10):
                while not server.started:  # noqa: ASYNC110 - uvicorn has nothing to wait for.
                    await asyncio.sleep(0.01)
            yield listener.getsockname()[:2]
        finally:
            server.should_exit = True
            await task
            listener.close()


@asynccontextmanager
async def gateway_kit(
    folder: Path,
    *,
    cors_origins: frozenset[str] = frozenset(),
    own_origin: str | None = None,
    execute_timeout_seconds: float = 10,
    body_seconds: float = 5,
    buffered_bytes: int = 8 * 1024 * 1024,
    tenant_bytes: int | None = None,
    body_limit: int = BODY_LIMIT,
    admin: MountedFace | None = None,
) -> AsyncIterator[GatewayKit]:
    users, services = generate_key_set(folder, "users"), generate_key_set(folder, "services")
    async with FakeRunner() as runner:
        client = RunnerClient(
            RunnerTarget(address=runner.target, tls_root_certificates=None, service_name="gateway", token_seconds=120),
            TokenMinter(services.private_jwk_file, issuer=SERVICES, audience=RUNNER_AUDIENCE),
        )
        authenticator = Authenticator(TokenVerifier(users.jwks_file, audience=GATEWAY_AUDIENCE, issuer=USERS), ClaimNames())
        endpoint = ExtensionsEndpoint(
            authenticator=authenticator,
            runner=client,
            policy=ExtensionPolicy(
                execute_timeout_seconds=execute_timeout_seconds,
                buffered_bytes=buffered_bytes,
                tenant_bytes=buffered_bytes if tenant_bytes is None else tenant_bytes,
                own_origin=own_origin,
                cors_origins=cors_origins,
            ),
        )
        metrics = GatewayMetrics()
        parts = GatewayParts(
            extensions=endpoint,
            extension_body=BodyAllowance(size_bytes=body_limit, seconds=body_seconds),
            admin=admin,
            checks={"runner": client.is_reachable},
            metrics=metrics,
        )
        try:
            yield GatewayKit(
                runner=runner,
                users=TokenMinter(users.private_jwk_file, issuer=USERS, audience=GATEWAY_AUDIENCE),
                services=TokenVerifier(services.jwks_file, audience=RUNNER_AUDIENCE, issuer=SERVICES),
                app=build_app(parts),
                metrics=metrics,
                endpoint=endpoint,
                runner_client=client,
                authenticator=authenticator,
                parts=parts,
            )
        finally:
            await client.aclose()
