"""What is written and read of a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping

from registry.domain.digests import ContentHash
from registry.domain.ids import ExtensionId, PublisherId, VersionId
from registry.domain.records import AllowedSigner

PENDING = "pending"
PUBLISHED = "published"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """What a publish writes down: facts of the verified bundle, never of the request around it."""

    publisher: str
    """Name of the publisher; must exist."""
    extension_name: str
    version: str
    display_name: str | None = None
    description: str | None = None
    runtime: str
    main_entry: str
    """Path of the component in the archive; "" for an extension without server code."""
    api_endpoints: Sequence[Mapping[str, Any]]
    """As `registry.domain.records.Endpoint` has them: method, path, handler, timeout_ms, roles, request_headers, response_headers,
    schedulable."""
    ui: Mapping[str, Any] | None
    capabilities: Sequence[str]
    """Without prefix."""
    manifest: Mapping[str, Any]
    """The archived manifest."""
    manifest_digest: str
    """SHA-256 of its RFC 8785 form, as "sha256:<hex>"; what consent refers to."""
    sbom_ref: str | None
    content_hash: ContentHash
    size_bytes: int
    storage_url: str
    """Object key of the archive."""
    signature: str
    """Object key of the signature."""
    signer: AllowedSigner
    """Who signed, as verified."""
    verified_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """One version and its bundle."""

    extension_id: ExtensionId
    extension_name: str
    publisher_id: PublisherId
    publisher: str
    version_id: VersionId
    version: str
    state: str
    """"pending" or "published"."""
    runtime: str
    capabilities: tuple[str, ...]
    manifest: Mapping[str, Any]
    manifest_digest: str
    content_hash: ContentHash
    size_bytes: int
    signer: AllowedSigner
    verified_at: datetime
    created_at: datetime
    published_at: datetime | None
    yanked_at: datetime | None
    deprecated_at: datetime | None


def version_row(mapping: RowMapping) -> VersionRow:
    """Read a row of the version queries."""
    signer = AllowedSigner(trust_domain=mapping["trust_domain"], issuer=mapping["signer_issuer"], identity=mapping["signer_identity"])
    return VersionRow(
        extension_id=ExtensionId(mapping["extension_id"]),
        extension_name=mapping["extension_name"],
        publisher_id=PublisherId(mapping["publisher_id"]),
        publisher=mapping["publisher"],
        version_id=VersionId(mapping["version_id"]),
        version=mapping["version"],
        state=mapping["state"],
        runtime=mapping["runtime"],
        capabilities=tuple(mapping["capabilities"]),
        manifest=mapping["manifest"],
        manifest_digest=mapping["manifest_digest"],
        content_hash=ContentHash(mapping["content_hash"]),
        size_bytes=mapping["size_bytes"],
        signer=signer,
        verified_at=mapping["verified_at"],
        created_at=mapping["created_at"],
        published_at=mapping["published_at"],
        yanked_at=mapping["yanked_at"],
        deprecated_at=mapping["deprecated_at"],
    )
