"""The gRPC server: options, credentials, services, start and drain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from extrunner.runner.v1 import runner_service_pb2
from registry.deployment import is_loopback
from registry.domain.limits import MIB
from registry.tokens import ClaimNames, TokenVerifier
from runnerd.config import host_of
from runnerd.rpc.health import Health
from runnerd.rpc.interceptors.authentication import AuthenticationInterceptor
from runnerd.rpc.interceptors.refusals import RefusalInterceptor
from runnerd.rpc.servicer import SCOPES, SERVICE, RunnerServicer
from runnerd.telemetry.metrics import Metrics

HEALTH_SERVICE = "grpc.health.v1.Health"


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcOptions:
    """What the operator says about the gRPC listener."""

    address: str
    """ "host:port"."""
    request_bytes_ceiling: int
    response_bytes_ceiling: int
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    reflection: bool = False
    max_concurrent_rpcs: int = 2048
    share_port: bool = False
    """Several cells of one user listen on it."""
    connection_age_seconds: int = 300
    claims: ClaimNames = field(default_factory=ClaimNames)
    """Names of the claims in users' tokens."""


class RpcServer:
    """The gRPC face of a daemon.

    Args:
        options: of the listener.
        servicer: answers RunnerService.
        services: verifies service tokens.
        users: verifies users' own tokens.
        metrics: counts refusals.
    """

    def __init__(
        self, options: RpcOptions, *, servicer: RunnerServicer, services: TokenVerifier, users: TokenVerifier | None, metrics: Metrics
    ) -> None:
        self._options = options
        self.health = Health((SERVICE, HEALTH_SERVICE))
        authentication = AuthenticationInterceptor(
            services=services,
            users=users,
            scopes=SCOPES,
            open_methods=self.health.anonymous_handlers(),
            claims=options.claims,
        )
        self._server = grpc.aio.server(
            interceptors=[RefusalInterceptor(metrics), authentication],
            options=_channel_options(options),
            # Above admission, so that gRPC's bare RESOURCE_EXHAUSTED never speaks first (N40).
            maximum_concurrent_rpcs=options.max_concurrent_rpcs,
        )
        self._server.add_generic_rpc_handlers((servicer.generic_handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self._server)
        if options.reflection:
            names = (runner_service_pb2.DESCRIPTOR.services_by_name["RunnerService"].full_name, HEALTH_SERVICE, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.port = 0

    async def start(self) -> int:
        """Listen, and return the port.

        Raises:
            ValueError: plaintext away from loopback.
            RuntimeError: the address cannot be had.
        """
        options = self._options
        if options.tls_certificate is not None and options.tls_key is not None:
            credentials = grpc.ssl_server_credentials([(options.tls_key.read_bytes(), options.tls_certificate.read_bytes())])
            self.port = self._server.add_secure_port(options.address, credentials)
        elif is_loopback(host_of(options.address)):
            self.port = self._server.add_insecure_port(options.address)
        else:
            # SECURITY: a bearer token on a plaintext wire belongs to whoever listens.
            message = f"plaintext gRPC is refused on {options.address}; give a TLS certificate and key or listen on loopback"
            raise ValueError(message)
        await self._server.start()
        return self.port

    async def serve(self) -> None:
        """Say SERVING."""
        await self.health.set_serving(serving=True)

    async def drain(self, grace_seconds: float) -> None:
        """Say NOT_SERVING, take no new call, and give those that run `grace_seconds`."""
        await self.health.set_serving(serving=False)
        await self._server.stop(grace_seconds)


def _channel_options(options: RpcOptions) -> Sequence[tuple[str, Any]]:
    return (
        # The ceiling + 1 MiB, so that our own check answers first (N30).
        ("grpc.max_receive_message_length", options.request_bytes_ceiling + MIB),
        ("grpc.max_send_message_length", options.response_bytes_ceiling + MIB),
        ("grpc.max_metadata_size", 24 * 1024),
        ("grpc.absolute_max_metadata_size", 32 * 1024),
        ("grpc.max_concurrent_streams", 1024),
        ("grpc.max_connection_age_ms", options.connection_age_seconds * 1000),
        ("grpc.max_connection_age_grace_ms", 60_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 4),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.so_reuseport", int(options.share_port)),
        # SECURITY: what a stream may send before anybody reads it. Left to itself, gRPC lets the window grow to megabytes on a fast
        # link, for callers without a credential too.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 256 * 1024),
    )
