"""The listener: TLS where it is given, plaintext on loopback only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from registry.domain.limits import OPERATOR_CEILING
from registry.tokens import RUNNER_AUDIENCE, TokenVerifier, generate_key_set
from runnerd.rpc.intake import IntakeBudget
from runnerd.rpc.server import RpcOptions, RpcServer
from runnerd.rpc.servicer import RunnerServicer
from runnerd.telemetry.metrics import Metrics
from tests.contract.rpc.conftest import describe, warm
from tests.fakes.dispatch_kit import dispatching
from tests.fakes.fake_worker import scripted


@dataclass(slots=True, kw_only=True)
class Identity:
    certificate: Path
    key: Path


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(minutes=10))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = Identity(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return files


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., RpcServer]:
    keys = generate_key_set(tmp_path, "services")

    def make(executor: Any, **options: Any) -> RpcServer:
        return RpcServer(
            RpcOptions(
                request_bytes_ceiling=OPERATOR_CEILING.request_bytes, response_bytes_ceiling=OPERATOR_CEILING.response_bytes, **options
            ),
            servicer=RunnerServicer(executor=executor, warm=warm, describe=describe, budget=IntakeBudget(1)),
            services=TokenVerifier(keys.jwks_file, audience=RUNNER_AUDIENCE, issuer="https://issuer.test"),
            users=None,
            metrics=Metrics(),
        )

    return make


async def test_tls__speaks_to_who_trusts_the_certificate_and_to_nobody_in_plaintext(
    build: Callable[..., RpcServer], identity: Identity
) -> None:
    fork, _ = scripted()
    async with dispatching(fork) as kit:
        server = build(kit.executor, address="127.0.0.1:0", tls_certificate=identity.certificate, tls_key=identity.key)
        port = await server.start()
        await server.serve()
        try:
            credentials = grpc.ssl_channel_credentials(identity.certificate.read_bytes())
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                plain: Any = health_pb2_grpc.HealthStub(channel)
                with pytest.raises(grpc.aio.AioRpcError):
                    await plain.Check(health_pb2.HealthCheckRequest(), timeout=2)
        finally:
            await server.drain(0)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "runner.internal:0"])
async def test_plaintext_away_from_loopback__is_refused(build: Callable[..., RpcServer], address: str) -> None:
    fork, _ = scripted()
    async with dispatching(fork) as kit:
        server = build(kit.executor, address=address)
        with pytest.raises(ValueError, match="plaintext"):
            await server.start()
        await server.drain(0)
