"""Rows that tests need in the registry, written the way the product writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from registry.database import Database
from registry.domain.digests import ContentHash, content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import ExecutionId, TenantId, new_id
from registry.domain.records import AllowedSigner, ExecutionRecord
from registry.repositories.installs import InstallView
from registry.repositories.versions import NewVersion, VersionRepository, VersionRow
from registry.services.installing import InstallService
from registry.services.publishers import PublisherService

TENANT = TenantId("tenant-a")
OTHER_TENANT = TenantId("tenant-b")
UNKNOWN_ID = "0197a000-0000-7000-8000-0000000000ff"
"""Names nothing. The same in every process: parallel test runs must collect the same parameters."""
SIGNER = AllowedSigner(trust_domain="development", issuer="https://oidc.dev.invalid", identity="https://dev.invalid/people/alice")


def new_version(
    *,
    publisher: str = "acme",
    name: str = "com.acme.notes",
    version: str = "1.0.0",
    capabilities: Sequence[str] = ("storage.kv", "http.fetch"),
    endpoints: Sequence[Mapping[str, Any]] = ({"method": "GET", "path": "/notes/:id"},),
    runtime: str = "wasm-component@1",
    egress: Sequence[Mapping[str, Any]] = (),
    bundle_hash: ContentHash | None = None,
) -> NewVersion:
    manifest = {"name": name, "version": version, "capabilities": list(capabilities), "egress": list(egress)}
    chosen_hash = content_hash(f"{name}@{version}".encode()) if bundle_hash is None else bundle_hash
    return NewVersion(
        publisher=publisher,
        extension_name=name,
        version=version,
        runtime=runtime,
        main_entry="dist/main.wasm",
        api_endpoints=endpoints,
        ui=None,
        capabilities=capabilities,
        manifest=manifest,
        manifest_digest="sha256:" + hashlib.sha256(json.dumps(manifest).encode()).hexdigest(),
        sbom_ref=None,
        content_hash=chosen_hash,
        size_bytes=1_000,
        storage_url=f"sha256/{chosen_hash.removeprefix('sha256:')}/bundle.tar.zst",
        signature=f"sha256/{chosen_hash.removeprefix('sha256:')}/bundle.sigstore.json",
        signer=SIGNER,
        verified_at=datetime.now(UTC),
    )


async def ensure_publisher(admin: Database, name: str = "acme") -> None:
    publishers = PublisherService(admin)
    try:
        await publishers.create(name, "test")
    except RefusalError as refusal:
        if refusal.reason is not Reason.ALREADY_EXISTS:
            raise
    await publishers.add_signer(name, SIGNER, "test")


async def publish(admin: Database, new: NewVersion | None = None) -> VersionRow:
    """Publish a version, with its publisher where that is missing."""
    new = new_version() if new is None else new
    await ensure_publisher(admin, new.publisher)
    async with admin.session() as session:
        claimed = await VersionRepository(session).claim(new)
    async with admin.session() as session:
        return await VersionRepository(session).mark_published(claimed.version_id)


async def install(
    admin: Database, tenant_id: TenantId = TENANT, *, name: str = "com.acme.notes", granted: Collection[str] = ("storage.kv",)
) -> InstallView:
    return await InstallService(admin).install(tenant_id, name, granted=granted, actor="test")


def execution(install_view: InstallView, **changes: Any) -> ExecutionRecord:
    values: dict[str, Any] = {
        "execution_id": ExecutionId(new_id()),
        "tenant_id": install_view.tenant_id,
        "install_id": install_view.install_id,
        "extension_id": install_view.extension_id,
        "version_id": install_view.version_id,
        "content_hash": install_view.content_hash,
        "request_id": "request-1",
        "trigger": "http",
        "method": "GET",
        "endpoint": "/notes/:id",
        "user_id": "user-1",
        "outcome": "completed",
        "reason": None,
        "http_status": 200,
        "started_at": datetime.now(UTC),
        "wall_ms": 12,
        "queue_ms": 1,
        "cpu_ms": 5,
        "fuel": 1_000,
        "peak_memory_bytes": 2 * 1024 * 1024,
        "host_calls": 2,
        "egress_request_bytes": 10,
        "egress_response_bytes": 20,
    }
    return ExecutionRecord(**(values | changes))
