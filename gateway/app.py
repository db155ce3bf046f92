"""The composition root: settings become parts, parts become one ASGI application.

RequestId → Metrics (and the last net for exceptions) → BodyLimit → FastAPI: /api/ext · /api/admin/v1 · /healthz /readyz /metrics
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from fastapi import FastAPI
from starlette.types import ASGIApp, Scope

from gateway import problems
from gateway.auth import Authenticator
from gateway.config import GatewaySettings
from gateway.middleware.body_limit import BodyAllowance, BodyLimitMiddleware
from gateway.middleware.metrics import GatewayMetrics, MetricsMiddleware
from gateway.middleware.request_id import RequestIdMiddleware
from gateway.routes import health
from gateway.routes.extensions import ExtensionPolicy, ExtensionsEndpoint
from gateway.runner_client import RunnerClient, RunnerTarget
from registry.domain.limits import MIB
from registry.tokens import RUNNER_AUDIENCE, ClaimNames, TokenMinter, TokenVerifier

ADMIN_PREFIX: Final = "/api/admin/v1"
_EXTENSIONS_PREFIX: Final = "/api/ext/"
_BUFFERED_BYTES: Final = 256 * MIB
_TENANTS_SHARE: Final = 4
"""One tenant may hold this fraction of it."""
_SMALL_BODY: Final = BodyAllowance(size_bytes=256 * 1024, seconds=30)
"""For everything that is neither a call nor a bundle."""


class MountedFace(Protocol):
    """The admin face; see gateway/admin_face.py."""

    @property
    def app(self) -> ASGIApp:
        """The application."""

    @property
    def allowances(self) -> Mapping[str, BodyAllowance]:
        """What bodies may take, by path under the prefix; what is not named gets little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayParts:
    """What an application is made of. A face that is None does not exist: its addresses are 404."""

    extensions: ExtensionsEndpoint | None
    extension_body: BodyAllowance
    admin: MountedFace | None
    checks: Mapping[str, health.Check]
    metrics: GatewayMetrics


def build_app(parts: GatewayParts) -> ASGIApp:
    """Return the application."""
    app = FastAPI(title="extrunner gateway", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    problems.install(app)
    if parts.extensions is not None:
        app.router.routes.append(parts.extensions.route())
    if parts.admin is not None:
        app.mount(ADMIN_PREFIX, parts.admin.app)
    app.include_router(health.build_router(checks=parts.checks, registry=parts.metrics.registry))

    def allowance(scope: Scope) -> BodyAllowance:
        path: str = scope["path"]
        if path.startswith(_EXTENSIONS_PREFIX):
            return parts.extension_body
        named = parts.admin.allowances if parts.admin is not None else {}
        return named.get(path.removeprefix(ADMIN_PREFIX), _SMALL_BODY)

    return RequestIdMiddleware(MetricsMiddleware(BodyLimitMiddleware(app, allowance=allowance), metrics=parts.metrics))


@asynccontextmanager
async def open_gateway(settings: GatewaySettings) -> AsyncIterator[ASGIApp]:
    """Make the parts that `settings` name, yield the application, and close them. Enter within the loop that serves.

    Raises:
        KeySetError: a key file is unusable, or a development key in production.
        StartError, RefusalError: see gateway/admin_face.py.
    """
    async with AsyncExitStack() as stack:
        authenticator = _authenticator(settings)
        runner = _runner(settings)
        stack.push_async_callback(runner.aclose)
        checks: dict[str, health.Check] = {}
        extensions: ExtensionsEndpoint | None = None
        if settings.serve.invoke:
            extensions = ExtensionsEndpoint(
                authenticator=authenticator,
                runner=runner,
                policy=ExtensionPolicy(
                    execute_timeout_seconds=settings.limits.execute_timeout_seconds,
                    buffered_bytes=max(_BUFFERED_BYTES, settings.limits.request_bytes),
                    tenant_bytes=max(_BUFFERED_BYTES // _TENANTS_SHARE, settings.limits.request_bytes),
                    own_origin=settings.public_origin,
                    cors_origins=frozenset(settings.cors_origins),
                ),
            )
            checks["runner"] = runner.is_reachable
        admin: MountedFace | None = None
        if settings.admin is not None:
            # SECURITY: not at the top: an invoke-only process does not even load what writes the registry (T7).
            from gateway.admin_face import open_admin_face  # noqa: PLC0415

            face = await stack.enter_async_context(
                open_admin_face(settings.admin, environment=settings.environment, authenticator=authenticator, runner=runner)
            )
            checks.update(face.checks)
            admin = face
        yield build_app(
            GatewayParts(
                extensions=extensions,
                extension_body=BodyAllowance(size_bytes=settings.limits.request_bytes, seconds=settings.limits.body_timeout_seconds),
                admin=admin,
                checks=checks,
                metrics=GatewayMetrics(),
            )
        )


def _authenticator(settings: GatewaySettings) -> Authenticator:
    users = settings.users
    verifier = TokenVerifier(users.jwks_file, audience=users.audience, issuer=users.issuer, refuse_development_keys=settings.is_production)
    return Authenticator(verifier, ClaimNames(tenant=users.tenant_claim, subject=users.subject_claim, roles=users.roles_claim))


def _runner(settings: GatewaySettings) -> RunnerClient:
    service, roots = settings.service, settings.runner.tls_root_file
    minter = TokenMinter(
        service.private_jwk_file, issuer=service.issuer, audience=RUNNER_AUDIENCE, refuse_development_keys=settings.is_production
    )
    target = RunnerTarget(
        address=settings.runner.target,
        tls_root_certificates=None if roots is None else roots.read_bytes(),
        service_name=service.name,
        token_seconds=service.token_seconds,
    )
    return RunnerClient(target, minter)
