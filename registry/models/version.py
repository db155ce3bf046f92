"""`extension_version`: what was published under which number."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import SQLModel

from registry.models.column import created_column, id_column, json_column, optional_json, optional_text, optional_time, text_column


class ExtensionVersion(SQLModel, table=True):
    """One version: pending until its bytes and signature are stored, then published and immutable but for yanking and deprecation."""

    __tablename__ = "extension_version"
    __table_args__ = (
        UniqueConstraint("registry_id", "version"),
        UniqueConstraint("registry_id", "id"),
        Index("extension_version_order", "registry_id", "version_order", postgresql_where=text("state = 'published'")),
    )

    id: str = id_column(primary_key=True)
    registry_id: str = id_column(foreign_key="extension_registry.id")
    version: str = text_column()
    version_order: str = text_column()
    is_prerelease: bool
    state: str = text_column()
    runtime: str = text_column()
    main_entry: str = text_column()
    api: dict[str, Any] = json_column()
    api_endpoints: list[dict[str, Any]] = json_column()
    ui: dict[str, Any] | None = optional_json()
    capabilities: list[str] = json_column()
    manifest: dict[str, Any] = json_column()
    manifest_digest: str = text_column()
    sbom_ref: str | None = optional_text()
    created_at: datetime = created_column()
    published_at: datetime | None = optional_time()
    yanked_at: datetime | None = optional_time()
    yanked_reason: str | None = optional_text()
    deprecated_at: datetime | None = optional_time()
