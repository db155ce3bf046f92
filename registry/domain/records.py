"""What services hand out: frozen facts, never table models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from registry.domain.digests import ContentHash
from registry.domain.egress import NO_EGRESS, InstallEgress
from registry.domain.ids import ExecutionId, ExtensionId, InstallId, PublisherId, TenantId, VersionId
from registry.domain.limits import LimitWishes


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint of a manifest. `path` may hold `:param` segments."""

    method: str
    path: str
    handler: str = ""
    timeout_ms: int | None = None
    roles: tuple[str, ...] = ()
    request_headers: tuple[str, ...] = ()
    response_headers: tuple[str, ...] = ()
    schedulable: bool = False
    """Whether the author means it to be called by a schedule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedSigner:
    """One identity that may sign for a publisher, exact."""

    trust_domain: str
    issuer: str
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedInstall:
    """What the daemon needs to run one call for one tenant. Resolved from the registry, never from the caller."""

    tenant_id: TenantId
    install_id: InstallId
    extension_id: ExtensionId
    extension_name: str
    publisher: str
    version_id: VersionId
    version: str
    content_hash: ContentHash
    runtime: str
    capabilities: frozenset[str]
    """Declared ∩ granted ∩ operator ceiling, and what everybody has."""
    declared: frozenset[str]
    granted: frozenset[str]
    endpoints: tuple[Endpoint, ...]
    endpoint_policy: str
    """"advisory" or "enforce"; always "enforce" where any endpoint names roles."""
    limits: LimitWishes
    config: Mapping[str, str]
    egress: InstallEgress = NO_EGRESS
    """Which hosts it may reach with http.fetch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadableBundle:
    """What must be checked before a content hash may run or be served: who may have signed it, as of now."""

    content_hash: ContentHash
    extension_id: ExtensionId
    extension_name: str
    version_id: VersionId
    version: str
    runtime: str
    publisher_id: PublisherId
    publisher: str
    manifest_digest: str
    signers: tuple[AllowedSigner, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRecord:
    """One row of the execution log. Holds the endpoint's template, never the path, and no header, body or user name."""

    execution_id: ExecutionId
    tenant_id: TenantId
    install_id: InstallId
    extension_id: ExtensionId
    version_id: VersionId
    content_hash: ContentHash
    request_id: str
    trigger: str
    method: str
    endpoint: str
    """Template of the matched endpoint, or "(undeclared)"."""
    user_id: str | None
    outcome: str
    """"completed", "trapped", "limit_exceeded", "guest_error" or "error"."""
    reason: str | None
    """Trap kind, limit kind, or reason of the catalog."""
    http_status: int | None
    started_at: datetime
    wall_ms: int
    queue_ms: int
    cpu_ms: int
    fuel: int
    peak_memory_bytes: int | None
    host_calls: int
    egress_request_bytes: int
    egress_response_bytes: int
    denials: tuple[Mapping[str, str], ...] = ()
    """Capabilities that were called and not granted: capability, why, and the smallest change that would allow it."""
    log: tuple[Mapping[str, str], ...] = field(default=())
    """Captured log lines, in order: level, stream ("log", "stdout", "stderr"), message, offset_us, and truncated where it was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageEntry:
    """One stored value of an install."""

    namespace: str
    key: str
    value: bytes
    revision: int
    """Begins at 1 and grows by one with each write."""
    metadata: str | None = None
    expires_at: datetime | None = None
    """From then on it is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageItem:
    """A value to store."""

    key: str
    value: bytes
    metadata: str | None = None
    ttl_seconds: int | None = None
    """None keeps it for good."""
