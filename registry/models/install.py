"""`tenant_extension_install`: which version a tenant has, and what it granted to it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlmodel import SQLModel

from registry.models.column import created_column, id_column, json_column, optional_json, optional_text, optional_time, text_column


class TenantExtensionInstall(SQLModel, table=True):
    """One extension of one tenant.

    `config` stays empty: the tenant's settings are in `tenant_extension_install_config`. An uninstalled row keeps them and the stored data,
    and comes back to life with the next install. `consented_digest` names the manifest that the grants were given for;
    `egress_hosts` is what the tenant leaves of the hosts that it declares (null: all of them), and until
    `egress_count_until`, which only an operator sets, that list is counted rather than enforced. `egress_secrets` are secrets that
    the daemon puts into a header for one host.
    """

    __tablename__ = "tenant_extension_install"
    __table_args__ = (
        UniqueConstraint("tenant_id", "registry_id"),
        UniqueConstraint("tenant_id", "runner_domain"),
        ForeignKeyConstraint(["registry_id", "version_id"], ["extension_version.registry_id", "extension_version.id"]),
        Index("tenant_extension_install_version", "version_id", postgresql_where=text("is_enabled")),
    )

    tenant_id: str = text_column(primary_key=True)
    id: str = id_column(primary_key=True)
    registry_id: str = id_column(foreign_key="extension_registry.id")
    version_id: str = id_column()
    granted_caps: list[str] = json_column()
    config: dict[str, Any] = json_column()
    limits: dict[str, int] = json_column()
    endpoint_policy: str = text_column()
    egress_hosts: list[str] | None = optional_json()
    egress_count_until: datetime | None = optional_time()
    egress_secrets: list[dict[str, Any]] = json_column()
    is_enabled: bool
    status: str = text_column()
    consented_digest: str = text_column()
    granted_by: str = text_column()
    granted_at: datetime = created_column()
    runner_domain: str | None = optional_text()
    runner_status: dict[str, Any] = json_column()
    runner_ref: dict[str, Any] | None = optional_json()
    created_at: datetime = created_column()
    updated_at: datetime = created_column()
