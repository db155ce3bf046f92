"""Composes the admin face: database, object store, trust, services. Imported only by a process that serves it.

Attack this stops: T7. What an invoke-only process never loads, it cannot be made to use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp

from gateway.auth import Authenticator
from gateway.config import AdminSettings, StartError
from gateway.middleware.body_limit import BodyAllowance
from gateway.routes.admin.application import BUNDLES_PATH, AdminServices, build_admin_app
from gateway.routes.admin.warming import Warmer
from gateway.routes.health import Check
from gateway.runner_client import RunnerClient
from registry.bundles.local import LocalBundleStore
from registry.database import Database, UnsafeDatabaseRoleError
from registry.deployment import Environment, is_embedded_database
from registry.domain.digests import ContentHash
from registry.domain.errors import RefusalError
from registry.domain.limits import MAX_SIGNATURE_BYTES
from registry.migrations.roles import ADMIN
from registry.provenance.domains import TrustConfigurationError, load_trust_domains
from registry.provenance.verifier import BundleVerifier
from registry.secrets.envelope import KeyServiceError
from registry.secrets.local_keys import SecretKeyError
from registry.secrets.sealing import Sealer, build_sealer
from registry.services.catalogue import CatalogueService
from registry.services.executions import ExecutionQuery
from registry.services.installing import InstallService
from registry.services.measurements import MeasurementQuery
from registry.services.publishers import PublisherService
from registry.services.publishing import PublishingLimits, PublishingService, StoredSignatureCheck, WarmOutcome
from registry.services.revocations import RevocationService
from registry.services.schedule_administration import ScheduleAdministration
from registry.services.secrets import SecretWriter

_MAX_URL_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminFace:
    """The admin application, what its bodies may take, and what it needs to be ready."""

    app: ASGIApp
    allowances: Mapping[str, BodyAllowance]
    """By path under the prefix; what is not named gets little."""
    checks: Mapping[str, Check]


@asynccontextmanager
async def open_admin_face(
    settings: AdminSettings, *, environment: str, authenticator: Authenticator, runner: RunnerClient
) -> AsyncIterator[AdminFace]:
    """Connect, compose, yield the face, and close.

    Raises:
        StartError: the database URL, its role, the trust domains or the key for secrets cannot be used, or are not for production.
        RefusalError: REGISTRY_UNAVAILABLE.
    """
    try:
        verifier = BundleVerifier(load_trust_domains(settings.trust_domains_file, environment=environment))
        url = read_database_url(settings.database_url_file, embedded_allowed=environment == Environment.DEVELOPMENT)
        database = await Database.connect(url, expected_role=ADMIN)
    except (TrustConfigurationError, UnsafeDatabaseRoleError) as error:
        raise StartError(str(error)) from error
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.aclose)
        sealer = _sealer(settings, refuse_development_keys=environment == Environment.PRODUCTION)
        if sealer is not None:
            stack.push_async_callback(sealer.aclose)
        store = LocalBundleStore(settings.bundle_store)
        stack.push_async_callback(store.aclose)
        warmer = Warmer(runner)
        stack.push_async_callback(warmer.aclose)
        limits = PublishingLimits(concurrent=settings.max_publishing, receive_seconds=settings.publish_timeout_seconds)

        async def warm(content_hash: ContentHash) -> WarmOutcome:
            result = await runner.warm(content_hash)
            return WarmOutcome(state=result.state, compile_seconds=result.compile_seconds)

        services = AdminServices(
            publishing=PublishingService(
                database=database, store=store, verifier=verifier, work_dir=settings.work_dir, warm=warm, limits=limits
            ),
            publishers=PublisherService(database),
            installs=InstallService(database, verify_bundle=StoredSignatureCheck(store, verifier)),
            secrets=SecretWriter(database, sealer),
            executions=ExecutionQuery(database),
            measurements=MeasurementQuery(database),
            schedules=ScheduleAdministration(database),
            revocations=RevocationService(database),
            catalogue=CatalogueService(database),
            warmer=warmer,
        )
        yield build_admin_face(services, authenticator=authenticator, limits=limits, checks={"database": _check(database)})


def build_admin_face(
    services: AdminServices, *, authenticator: Authenticator, limits: PublishingLimits, checks: Mapping[str, Check]
) -> AdminFace:
    """Return the face over `services`."""
    # One byte more than publishing takes, so that its own check answers first.
    size_bytes = limits.bundle.packed_bytes + MAX_SIGNATURE_BYTES + 1
    bundle = BodyAllowance(size_bytes=size_bytes, seconds=limits.receive_seconds)
    return AdminFace(app=build_admin_app(services, authenticator=authenticator), allowances={BUNDLES_PATH: bundle}, checks=checks)


def read_database_url(file: Path, *, embedded_allowed: bool) -> str:
    """Return the URL in `file`.

    Raises:
        StartError: it cannot be read, or names an embedded server where that is not allowed. The URL is not repeated: it holds a password.
    """
    try:
        with file.open("rb") as stream:
            url = stream.read(_MAX_URL_BYTES).decode().strip()
        is_embedded = is_embedded_database(url)
    except (OSError, ValueError) as error:
        message = f"{file}: the database URL cannot be read"
        raise StartError(message) from error
    if is_embedded and not embedded_allowed:
        message = f"{file}: names an embedded PostgreSQL, which is for development only"
        raise StartError(message)
    return url


def _sealer(settings: AdminSettings, *, refuse_development_keys: bool) -> Sealer | None:
    if settings.secrets is None:
        return None
    try:
        return build_sealer(settings.secrets, refuse_development_keys=refuse_development_keys)
    except (SecretKeyError, KeyServiceError) as error:
        raise StartError(str(error)) from error


def _check(database: Database) -> Check:
    async def answers() -> bool:
        try:
            await database.ping()
        except RefusalError:
            return False
        return True

    return answers
