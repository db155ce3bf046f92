"""The admin face over a real database, a real store and a real trust domain, in front of a fake runner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.admin_face import build_admin_face
from gateway.routes.admin.application import AdminServices
from gateway.routes.admin.bundles import MEDIA_TYPE
from gateway.routes.admin.warming import Warmer
from registry.bundles.local import LocalBundleStore
from registry.database import Database
from registry.domain.digests import content_hash
from registry.provenance.dev_trust import DevTrust
from registry.provenance.domains import load_trust_domains
from registry.provenance.verifier import BundleVerifier
from registry.secrets.local_keys import GeneratedKeyPair
from registry.secrets.sealing import build_sealer
from registry.secrets.settings import LocalSealingSettings, SealingSettings
from registry.services.catalogue import CatalogueService
from registry.services.executions import ExecutionQuery
from registry.services.installing import InstallService
from registry.services.measurements import MeasurementQuery
from registry.services.publishers import PublisherService
from registry.services.publishing import PublishingLimits, PublishingService, StoredSignatureCheck, WarmOutcome
from registry.services.revocations import RevocationService
from registry.services.schedule_administration import ScheduleAdministration
from registry.services.secrets import SecretWriter
from tests.fakes.gateway_kit import GatewayKit, gateway_kit
from tests.fakes.sealing import make_pair

ALICE = "https://dev.invalid/people/alice"
MALLORY = "https://dev.invalid/people/mallory"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminKit:
    """A gateway with both faces, and a client for it."""

    gateway: GatewayKit
    client: httpx.AsyncClient
    trust: DevTrust
    database: Database
    secrets: GeneratedKeyPair
    """For tests that open what was sealed; the gateway has the public half."""

    async def ask(self, method: str, path: str, *roles: str, tenant: str = "t1", **arguments: Any) -> httpx.Response:
        headers = {**self.gateway.bearer(tenant=tenant, roles=roles), **arguments.pop("headers", {})}
        return await self.client.request(method, f"/api/admin/v1{path}", headers=headers, **arguments)

    async def operate(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return await self.ask(method, path, "ext:operate", tenant="*", **arguments)

    async def make_publisher(self, name: str = "example", identity: str = ALICE) -> None:
        assert (await self.operate("POST", "/publishers", json={"name": name})).status_code == 201
        signer = self.trust.signer(identity)
        document = {"trust_domain": signer.trust_domain, "issuer": signer.issuer, "identity": signer.identity}
        assert (await self.operate("POST", f"/publishers/{name}/signers", json=document)).status_code == 201

    async def publish(self, archive: bytes, *, identity: str = ALICE, signature: bytes | None = None) -> httpx.Response:
        signed = self.trust.sign(content_hash(archive), identity) if signature is None else signature
        headers = {"content-type": MEDIA_TYPE, "x-extrunner-signature-length": str(len(signed))}
        return await self.ask("POST", "/bundles", "ext:publish", tenant="*", headers=headers, content=signed + archive)


@pytest.fixture
async def admin(admin_database: Database, tmp_path: Path) -> AsyncIterator[AdminKit]:
    trust = DevTrust.init(tmp_path / "trust")
    verifier = BundleVerifier(load_trust_domains(trust.trust_domains_path, environment="development"))
    store = LocalBundleStore(tmp_path / "bundles")
    keys = tmp_path / "keys"
    keys.mkdir()
    async with AsyncExitStack() as stack:
        outer = await stack.enter_async_context(gateway_kit(keys))

        async def warm(digest: str) -> WarmOutcome:
            result = await outer.runner_client.warm(digest)
            return WarmOutcome(state=result.state, compile_seconds=result.compile_seconds)

        warmer = Warmer(outer.runner_client)
        stack.push_async_callback(warmer.aclose)
        limits = PublishingLimits()
        pair = make_pair(tmp_path, "secrets")
        # All that the gateway has is the public half.
        sealing = SealingSettings(local=LocalSealingSettings(public_key_file=pair.public_file))
        services = AdminServices(
            publishing=PublishingService(
                database=admin_database, store=store, verifier=verifier, work_dir=tmp_path / "work", warm=warm, limits=limits
            ),
            publishers=PublisherService(admin_database),
            installs=InstallService(admin_database, verify_bundle=StoredSignatureCheck(store, verifier)),
            secrets=SecretWriter(admin_database, build_sealer(sealing, refuse_development_keys=True)),
            executions=ExecutionQuery(admin_database),
            measurements=MeasurementQuery(admin_database),
            schedules=ScheduleAdministration(admin_database),
            revocations=RevocationService(admin_database),
            catalogue=CatalogueService(admin_database),
            warmer=warmer,
        )
        face = build_admin_face(services, authenticator=outer.authenticator, limits=limits, checks={})
        both = outer.with_admin(face)
        yield AdminKit(
            gateway=both, client=await stack.enter_async_context(both.client()), trust=trust, database=admin_database, secrets=pair
        )
        await store.aclose()
