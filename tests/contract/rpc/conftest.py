"""The gRPC face over a dispatcher with scripted workers, on loopback, with tokens of a key set made for the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from extrunner.runner.v1 import runner_service_pb2_grpc
from registry.domain.digests import ContentHash
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MIB, OPERATOR_CEILING
from registry.tokens import GATEWAY_AUDIENCE, RUNNER_AUDIENCE, TokenMinter, TokenVerifier, generate_key_set
from runnerd.artifacts.loaded import WarmOutcome
from runnerd.dispatch.runner_info import HardeningState, RunnerInfo
from runnerd.rpc.intake import IntakeBudget
from runnerd.rpc.server import RpcOptions, RpcServer
from runnerd.rpc.servicer import RunnerServicer
from tests.fakes.dispatch_kit import TENANT, Kit, dispatching
from tests.fakes.fake_worker import scripted

ISSUER = "https://issuer.test"
ALL = "execute warm info assert-user trigger:event trigger:schedule"
WARM_HASH = ContentHash("sha256:" + "a" * 64)


@dataclass(slots=True, kw_only=True)
class Face:
    """A running server and what a client needs."""

    server: RpcServer
    channel: grpc.aio.Channel
    stub: runner_service_pb2_grpc.RunnerServiceAsyncStub
    kit: Kit
    services: TokenMinter
    users: TokenMinter
    budget: IntakeBudget

    def service_token(self, scope: str = ALL, tenants: tuple[str, ...] = ("*",), *, ttl_seconds: int = 300) -> str:
        return self.services.mint("test-service", ttl_seconds=ttl_seconds, scope=scope, tenants=list(tenants))

    def user_token(self, tenant: str = TENANT, roles: tuple[str, ...] = ("ext:invoke",), subject: str = "u-1") -> str:
        return self.users.mint(subject, ttl_seconds=300, tenant=tenant, roles=list(roles))

    def metadata(self, scope: str = ALL, tenants: tuple[str, ...] = ("*",), user: str | None = None) -> list[tuple[str, str]]:
        pairs = [("authorization", f"Bearer {self.service_token(scope, tenants)}")]
        return pairs if user is None else [*pairs, ("x-extrunner-subject-token", user)]


def describe() -> RunnerInfo:
    return RunnerInfo(
        version="1",
        engine_version="50",
        engine_fingerprint="f",
        workers=1,
        slots=4,
        workers_max=8,
        ceiling=OPERATOR_CEILING,
        hardening=(HardeningState(name="seccomp", applied=True, mandatory=True),),
        trust_domain="development",
        trust_domain_production=False,
        cell=1,
        cells=2,
        generation=3,
        circuits_open=4,
    )


async def warm(content_hash: ContentHash) -> WarmOutcome:
    if content_hash != WARM_HASH:
        raise RefusalError(Reason.VERSION_NOT_FOUND, "No version has this content hash.")
    return WarmOutcome(state="compiled", compile_seconds=1.5)


FaceFactory = Callable[..., AbstractAsyncContextManager[Face]]


@pytest.fixture
def face(tmp_path: Path) -> FaceFactory:
    """Return a context manager that serves."""
    keys = {name: generate_key_set(tmp_path, name) for name in ("services", "users")}

    @asynccontextmanager
    async def serving(*scripts: Any, budget_bytes: int = 256 * MIB, **changes: Any) -> AsyncIterator[Face]:
        fork, _ = scripted(*scripts)
        async with dispatching(fork) as kit:
            budget = IntakeBudget(budget_bytes)
            options = RpcOptions(
                address="127.0.0.1:0",
                request_bytes_ceiling=OPERATOR_CEILING.request_bytes,
                response_bytes_ceiling=OPERATOR_CEILING.response_bytes,
                **changes,
            )
            server = RpcServer(
                options,
                servicer=RunnerServicer(executor=kit.executor, warm=warm, describe=describe, budget=budget),
                services=TokenVerifier(keys["services"].jwks_file, audience=RUNNER_AUDIENCE, issuer=ISSUER),
                users=TokenVerifier(keys["users"].jwks_file, audience=GATEWAY_AUDIENCE, issuer=ISSUER),
                metrics=kit.metrics,
            )
            port = await server.start()
            await server.serve()
            limits = [("grpc.max_send_message_length", 64 * MIB), ("grpc.max_receive_message_length", 64 * MIB)]
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=limits) as channel:
                    yield Face(
                        server=server,
                        channel=channel,
                        stub=runner_service_pb2_grpc.RunnerServiceStub(channel),
                        kit=kit,
                        services=TokenMinter(keys["services"].private_jwk_file, issuer=ISSUER, audience=RUNNER_AUDIENCE),
                        users=TokenMinter(keys["users"].private_jwk_file, issuer=ISSUER, audience=GATEWAY_AUDIENCE),
                        budget=budget,
                    )
            finally:
                await server.drain(0)

    return serving
