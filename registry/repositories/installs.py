"""Installs of one tenant: what it has, what it granted, and what a call resolves to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Final

from sqlalchemy import RowMapping, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from registry.database import Session
from registry.domain.digests import ContentHash
from registry.domain.egress import InstallEgress, SecretBinding, rules_of
from registry.domain.ids import ExtensionId, InstallId, TenantId, VersionId, new_id
from registry.domain.limits import LimitWishes
from registry.domain.records import Endpoint
from registry.repositories.searchable import text_or_nothing, uuid_or_none

ENABLED: Final = "enabled"
DISABLED: Final = "disabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallView:
    """One install as administrators see it."""

    tenant_id: TenantId
    install_id: InstallId
    extension_id: ExtensionId
    extension_name: str
    publisher: str
    version_id: VersionId
    version: str
    content_hash: ContentHash
    runtime: str
    declared: tuple[str, ...]
    """Capabilities that the version's manifest asks for."""
    granted: tuple[str, ...]
    """Those of them that the tenant granted; the rest is denied at run time."""
    is_enabled: bool
    endpoint_policy: str
    limits: LimitWishes
    config: Mapping[str, str]
    egress: InstallEgress
    """Hosts that it may reach where http.fetch is granted."""
    consented_digest: str
    """Digest of the manifest that the grants were given for."""
    granted_by: str
    granted_at: datetime
    is_yanked: bool
    is_denied: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRow:
    """What one call needs, in one round trip."""

    install_id: InstallId
    extension_id: ExtensionId
    extension_name: str
    publisher: str
    version_id: VersionId
    version: str
    content_hash: ContentHash
    runtime: str
    declared: frozenset[str]
    granted: frozenset[str]
    endpoints: tuple[Endpoint, ...]
    endpoint_policy: str
    limits: LimitWishes
    config: Mapping[str, str]
    egress: InstallEgress
    is_enabled: bool
    is_denied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInstall:
    """What a tenant decided."""

    extension_id: ExtensionId
    version_id: VersionId
    granted: Sequence[str]
    config: Mapping[str, str] | None
    """None keeps what an uninstalled one left behind."""
    limits: LimitWishes
    endpoint_policy: str
    consented_digest: str
    actor: str
    egress_hosts: Sequence[str] | None = None
    """What is left of the declared hosts; None where all of them are."""


_FROM: Final = """
  from tenant_extension_install i
  join extension_registry r on r.id = i.registry_id
  join extension_version v on v.id = i.version_id and v.state = 'published'
  join extension_bundle b on b.version_id = v.id
  left join tenant_extension_install_config c on c.tenant_id = i.tenant_id and c.install_id = i.id
 where i.tenant_id = :tenant_id and i.status <> 'uninstalled'
"""
_COLUMNS: Final = """
select i.tenant_id, i.id::text as install_id, i.granted_caps, i.limits, i.endpoint_policy, i.is_enabled, i.consented_digest, i.granted_by,
       i.granted_at, i.created_at, i.updated_at, r.id::text as extension_id, r.name as extension_name, r.publisher,
       v.id::text as version_id, v.version, v.runtime, v.capabilities, v.api_endpoints, v.yanked_at is not null as is_yanked,
       i.egress_hosts, i.egress_count_until, i.egress_secrets,
       -- A consent is for one manifest: the hosts of another one were never shown to who gave it.
       case when i.consented_digest = v.manifest_digest then v.manifest -> 'egress' end as egress,
       b.content_hash, coalesce(c.config, '{}') as config,
       exists (select from extension_denylist d where d.content_hash = b.content_hash) as is_denied
"""
_RESOLVE: Final = text(_COLUMNS + _FROM + " and (r.name = :ref or r.id = cast(:uuid as uuid))")
_GET: Final = text(_COLUMNS + _FROM + " and i.id = cast(:install_id as uuid)")
_LIST: Final = text(_COLUMNS + _FROM + " and (cast(:after as text) is null or r.name > :after) order by r.name limit :limit")
_FIND_STATE: Final = text(
    """select i.id::text as id, i.status from tenant_extension_install i
        where i.tenant_id = :tenant_id and i.registry_id = cast(:extension_id as uuid) for update"""
)
_INSERT: Final = text(
    """
insert into tenant_extension_install
       (tenant_id, id, registry_id, version_id, granted_caps, limits, endpoint_policy, consented_digest, granted_by, egress_hosts)
values (:tenant_id, cast(:install_id as uuid), cast(:extension_id as uuid), cast(:version_id as uuid), :granted, :limits,
        :endpoint_policy, :consented_digest, :actor, :hosts)
on conflict (tenant_id, registry_id) do nothing
returning id
"""
).bindparams(bindparam("granted", type_=JSONB), bindparam("limits", type_=JSONB), bindparam("hosts", type_=JSONB(none_as_null=True)))
_REVIVE: Final = text(
    """
update tenant_extension_install i
   set version_id = cast(:version_id as uuid), granted_caps = :granted, limits = :limits, endpoint_policy = :endpoint_policy,
       consented_digest = :consented_digest, granted_by = :actor, granted_at = now(), status = 'enabled', is_enabled = true,
       egress_hosts = :hosts, egress_count_until = null, egress_secrets = '[]', updated_at = now()
 where i.tenant_id = :tenant_id and i.id = cast(:install_id as uuid) and i.status = 'uninstalled'
returning i.id
"""
).bindparams(bindparam("granted", type_=JSONB), bindparam("limits", type_=JSONB), bindparam("hosts", type_=JSONB(none_as_null=True)))
_PUT_CONFIG: Final = text(
    """
insert into tenant_extension_install_config as c (tenant_id, install_id, config, version)
values (:tenant_id, cast(:install_id as uuid), :config, cast(:version as uuid))
on conflict (tenant_id, install_id) do update set config = excluded.config, version = excluded.version, updated_at = now()
 where c.tenant_id = :tenant_id
"""
).bindparams(bindparam("config", type_=JSONB))


def _changing(assignments: str, *, tables: str = "", condition: str = "") -> TextClause:
    """Make the statement that changes an install of the tenant that is not uninstalled, and returns its id."""
    return text(
        f"""
update tenant_extension_install i set {assignments}, updated_at = now() {tables}
 where i.tenant_id = :tenant_id and i.id = cast(:install_id as uuid) and i.status <> 'uninstalled' {condition}
returning i.id
"""  # noqa: S608 - constants
    )


_SET_ENABLED: Final = _changing("is_enabled = :enabled, status = :status")
_SET_GRANTS: Final = _changing(
    "granted_caps = :granted, consented_digest = v.manifest_digest, granted_by = :actor, granted_at = now()",
    tables="from extension_version v",
    condition="and v.id = i.version_id",
).bindparams(bindparam("granted", type_=JSONB))
_SET_LIMITS: Final = _changing("limits = :limits").bindparams(bindparam("limits", type_=JSONB))
_SET_EGRESS_HOSTS: Final = _changing("egress_hosts = :hosts").bindparams(bindparam("hosts", type_=JSONB(none_as_null=True)))
_SET_EGRESS_COUNT: Final = _changing("egress_count_until = now() + make_interval(secs => :seconds)")
_SET_EGRESS_SECRETS: Final = _changing("egress_secrets = :secrets").bindparams(bindparam("secrets", type_=JSONB))
_UNINSTALL: Final = _changing("is_enabled = false, status = 'uninstalled', granted_caps = '[]'")
_PURGE: Final = text(
    "delete from tenant_extension_install i where i.tenant_id = :tenant_id and i.id = cast(:install_id as uuid) returning i.id"
)
_LIMIT_NAMES: Final = frozenset(field.name for field in fields(LimitWishes))


class InstallRepository:
    """Tables `tenant_extension_install`, `tenant_extension_install_config` of one tenant.

    Reading: ext_runner, ext_admin; writing: ext_admin. Every statement names the tenant, and row-level security holds where one would not.
    """

    def __init__(self, session: Session, tenant_id: TenantId | str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def resolve(self, extension_ref: str) -> ResolvedRow | None:
        """Return the tenant's install of an extension (name or id), enabled or not, denied or not."""
        row = await self._first(_RESOLVE, ref=text_or_nothing(extension_ref), uuid=uuid_or_none(extension_ref))
        return None if row is None else _resolved(row)

    async def find(self, install_id: str) -> InstallView | None:
        """Return one install."""
        row = await self._first(_GET, install_id=uuid_or_none(install_id))
        return None if row is None else _view(row)

    async def list_installs(self, *, limit: int, after: str | None) -> tuple[InstallView, ...]:
        """Return installs by extension name, beginning after the name `after`."""
        parameters = {"tenant_id": self._tenant_id, "after": None if after is None else text_or_nothing(after), "limit": limit}
        rows = await self._session.execute(_LIST, parameters)
        return tuple(_view(row) for row in rows.mappings())

    async def add(self, new: NewInstall) -> InstallId | None:
        """Install, or bring an uninstalled one back with its id and data. None if the extension is installed already."""
        values: dict[str, object] = {
            "version_id": new.version_id,
            "granted": sorted(set(new.granted)),
            "limits": _limits_document(new.limits),
            "endpoint_policy": new.endpoint_policy,
            "consented_digest": new.consented_digest,
            "actor": new.actor,
            "hosts": _hosts_document(new.egress_hosts),
        }
        before = await self._first(_FIND_STATE, extension_id=new.extension_id)
        if before is None:
            written = await self._first(_INSERT, install_id=new_id(), extension_id=new.extension_id, **values)
        else:
            written = await self._first(_REVIVE, install_id=before["id"], **values)
        if written is None:
            return None
        install_id = InstallId(str(written["id"]))
        if new.config is not None:
            await self.put_config(install_id, new.config)
        return install_id

    async def put_config(self, install_id: InstallId, config: Mapping[str, str]) -> None:
        """Replace the settings of an install that exists."""
        parameters = {"tenant_id": self._tenant_id, "install_id": install_id, "config": dict(config), "version": new_id()}
        await self._session.execute(_PUT_CONFIG, parameters)

    async def set_enabled(self, install_id: str, *, enabled: bool) -> bool:
        """Enable or disable. Tell whether there is such an install."""
        status = ENABLED if enabled else DISABLED
        return await self._first(_SET_ENABLED, install_id=uuid_or_none(install_id), enabled=enabled, status=status) is not None

    async def set_grants(self, install_id: str, granted: Sequence[str], *, actor: str) -> bool:
        """Replace the grants, given for the manifest of the installed version. Tell whether there is such an install."""
        granted = sorted(set(granted))
        return await self._first(_SET_GRANTS, install_id=uuid_or_none(install_id), granted=granted, actor=actor) is not None

    async def set_limits(self, install_id: str, limits: LimitWishes) -> bool:
        """Replace the limits. Tell whether there is such an install."""
        return await self._first(_SET_LIMITS, install_id=uuid_or_none(install_id), limits=_limits_document(limits)) is not None

    async def set_egress_hosts(self, install_id: str, hosts: Sequence[str] | None) -> bool:
        """Replace what is left of the declared hosts; None leaves all. Tell whether there is such an install."""
        return await self._first(_SET_EGRESS_HOSTS, install_id=uuid_or_none(install_id), hosts=_hosts_document(hosts)) is not None

    async def set_egress_count(self, install_id: str, seconds: float) -> bool:
        """Count rather than enforce the list of hosts for so long from now; 0 ends it. Tell whether there is such an install."""
        return await self._first(_SET_EGRESS_COUNT, install_id=uuid_or_none(install_id), seconds=seconds) is not None

    async def set_egress_secrets(self, install_id: str, bindings: Sequence[SecretBinding]) -> bool:
        """Replace the secrets that are put into headers. Tell whether there is such an install."""
        documents = [asdict(binding) for binding in bindings]
        return await self._first(_SET_EGRESS_SECRETS, install_id=uuid_or_none(install_id), secrets=documents) is not None

    async def uninstall(self, install_id: str, *, purge: bool) -> bool:
        """Take the install away; with `purge` its settings and stored data too. Tell whether there was one."""
        return await self._first(_PURGE if purge else _UNINSTALL, install_id=uuid_or_none(install_id)) is not None

    async def _first(self, statement: TextClause, **parameters: object) -> RowMapping | None:
        return (await self._session.execute(statement, {"tenant_id": self._tenant_id, **parameters})).mappings().first()


def _limits_document(limits: LimitWishes) -> dict[str, int]:
    return {name: value for name, value in asdict(limits).items() if value is not None}


def _hosts_document(hosts: Sequence[str] | None) -> list[str] | None:
    return None if hosts is None else sorted(set(hosts))


def _egress(row: RowMapping) -> InstallEgress:
    hosts = row["egress_hosts"]
    return InstallEgress(
        rules=rules_of(row["egress"]),
        hosts=None if hosts is None else tuple(hosts),
        count_until=row["egress_count_until"],
        secrets=tuple(SecretBinding(**document) for document in row["egress_secrets"]),
    )


def _limits(document: Mapping[str, int]) -> LimitWishes:
    # A newer release may have written a limit that this one does not know.
    return LimitWishes(**{name: value for name, value in document.items() if name in _LIMIT_NAMES})


def endpoint_of(document: Mapping[str, Any]) -> Endpoint:
    """Read an endpoint as it is stored with its version. What a newer release added is not read."""
    return Endpoint(
        method=document["method"],
        path=document["path"],
        handler=document.get("handler", ""),
        timeout_ms=document.get("timeout_ms"),
        roles=tuple(document.get("roles") or ()),
        request_headers=tuple(document.get("request_headers") or ()),
        response_headers=tuple(document.get("response_headers") or ()),
        schedulable=document.get("schedulable", False),
    )


def _resolved(row: RowMapping) -> ResolvedRow:
    return ResolvedRow(
        install_id=InstallId(row["install_id"]),
        extension_id=ExtensionId(row["extension_id"]),
        extension_name=row["extension_name"],
        publisher=row["publisher"],
        version_id=VersionId(row["version_id"]),
        version=row["version"],
        content_hash=ContentHash(row["content_hash"]),
        runtime=row["runtime"],
        declared=frozenset(row["capabilities"]),
        granted=frozenset(row["granted_caps"]),
        endpoints=tuple(endpoint_of(document) for document in row["api_endpoints"]),
        endpoint_policy=row["endpoint_policy"],
        limits=_limits(row["limits"]),
        config=dict(row["config"]),
        egress=_egress(row),
        is_enabled=row["is_enabled"],
        is_denied=row["is_denied"],
    )


def _view(row: RowMapping) -> InstallView:
    return InstallView(
        tenant_id=TenantId(row["tenant_id"]),
        install_id=InstallId(row["install_id"]),
        extension_id=ExtensionId(row["extension_id"]),
        extension_name=row["extension_name"],
        publisher=row["publisher"],
        version_id=VersionId(row["version_id"]),
        version=row["version"],
        content_hash=ContentHash(row["content_hash"]),
        runtime=row["runtime"],
        declared=tuple(row["capabilities"]),
        granted=tuple(row["granted_caps"]),
        is_enabled=row["is_enabled"],
        endpoint_policy=row["endpoint_policy"],
        limits=_limits(row["limits"]),
        config=dict(row["config"]),
        egress=_egress(row),
        consented_digest=row["consented_digest"],
        granted_by=row["granted_by"],
        granted_at=row["granted_at"],
        is_yanked=row["is_yanked"],
        is_denied=row["is_denied"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
