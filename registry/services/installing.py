"""Installing: a tenant takes an extension and says what it may do.

The grant names the manifest it was given for (`consented_digest`), and never holds a capability that the manifest does not ask for.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, astuple, fields
from datetime import timedelta
from typing import Final

from registry.database import Database, Session
from registry.domain.capabilities import ALWAYS, normalise
from registry.domain.digests import ContentHash
from registry.domain.egress import (
    COUNT_MODE_MOST,
    MAX_BINDINGS,
    MAX_HOSTS,
    EgressRule,
    SecretBinding,
    covers,
    host_matches,
    is_host_pattern,
    rules_of,
)
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId
from registry.domain.limits import OPERATOR_CEILING, LimitWishes
from registry.domain.records import LoadableBundle
from registry.repositories.audit import AuditRepository
from registry.repositories.installs import InstallRepository, InstallView, NewInstall
from registry.repositories.version_order import is_version
from registry.repositories.versions import VersionRepository, VersionRow
from registry.services.pages import checked_limit, decode_cursor, encode_cursor
from registry.services.refusals import no_such_install

__all__ = ["InstallService", "InstallView"]

ENDPOINT_POLICIES: Final = frozenset({"advisory", "enforce"})
_CONFIG_KEY: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")
_MAX_CONFIG_ENTRIES: Final = 100
_MAX_CONFIG_BYTES: Final = 64 * 1024
VerifyBundle = Callable[[LoadableBundle], Awaitable[None]]


class InstallService:
    """Installs, grants, enabling, uninstalling; every act leaves an audit row of the tenant. Needs role ext_admin.

    Args:
        database: of role ext_admin.
        verify_bundle: checks the stored signature of what is about to be installed and raises if it does not hold (any more); called
            outside of a transaction.
    """

    def __init__(self, database: Database, *, verify_bundle: VerifyBundle | None = None) -> None:
        self._database = database
        self._verify_bundle = verify_bundle

    async def install(  # noqa: PLR0913 - what a tenant decides, named at the call
        self,
        tenant_id: TenantId | str,
        extension_ref: str,
        *,
        version: str | None = None,
        granted: Collection[str] | None = None,
        config: Mapping[str, str] | None = None,
        limits: LimitWishes | None = None,
        endpoint_policy: str = "advisory",
        egress_hosts: Collection[str] | None = None,
        actor: str,
    ) -> InstallView:
        """Install a published version for a tenant, enabled.

        Args:
            tenant_id: the tenant.
            extension_ref: name or id.
            version: None for the latest one that is not withdrawn (a pre-release only where there is nothing else).
            granted: what the extension may do, a subset of what it asks for; what is left out is denied at run time. None means that nobody
                decided, and is refused unless it asks for nothing.
            config: the tenant's settings: at most 100, 64 KiB in all. None keeps those that an earlier install left behind.
            limits: raise a default up to the operator's ceiling, or lower it.
            endpoint_policy: "advisory" or "enforce".
            egress_hosts: what the tenant leaves of the hosts that the manifest declares, for http.fetch; None leaves all of them, which is
                what granting the capability for this manifest says.
            actor: who asks, for the audit log.

        Raises:
            RefusalError: INVALID_REQUEST, VERSION_NOT_FOUND, VERSION_YANKED, HASH_DENIED, CONSENT_REQUIRED (metadata `missing` names the
                capabilities to decide about), ALREADY_INSTALLED, REGISTRY_UNAVAILABLE.
        """
        settings = None if config is None else _checked_config(config)
        wishes = _checked_limits(limits or LimitWishes())
        if endpoint_policy not in ENDPOINT_POLICIES:
            raise RefusalError(Reason.INVALID_REQUEST, 'The endpoint policy must be "advisory" or "enforce".')
        if version is not None and not is_version(version):
            raise RefusalError(Reason.INVALID_REQUEST, "The version is not a semantic version such as 1.4.0.")
        version = await self._verified(extension_ref, version)
        async with self._database.tenant_session(tenant_id) as session:
            chosen = await _choose(session, extension_ref, version)
            new = NewInstall(
                extension_id=chosen.extension_id,
                version_id=chosen.version_id,
                granted=_checked_grants(granted, chosen.capabilities),
                config=settings,
                limits=wishes,
                endpoint_policy=endpoint_policy,
                consented_digest=chosen.manifest_digest,
                actor=actor,
                egress_hosts=_checked_hosts(egress_hosts, rules_of(chosen.manifest.get("egress"))),
            )
            installs = InstallRepository(session, tenant_id)
            install_id = await installs.add(new)
            if install_id is None:
                raise RefusalError(Reason.ALREADY_INSTALLED, "The extension is installed already; change its grants or uninstall it first.")
            detail = {
                "extension": chosen.extension_name,
                "version": chosen.version,
                "granted": sorted(new.granted),
                "manifest": new.consented_digest,
                "egress_hosts": None if new.egress_hosts is None else sorted(new.egress_hosts),
            }
            await AuditRepository(session, TenantId(tenant_id)).record(
                actor=actor, action="install.create", subject=install_id, detail=detail
            )
            return _found(await installs.find(install_id))

    async def get(self, tenant_id: TenantId | str, install_id: str) -> InstallView:
        """Return one install of the tenant.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED (also for another tenant's), REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            return _found(await InstallRepository(session, tenant_id).find(install_id))

    async def list(
        self, tenant_id: TenantId | str, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[tuple[InstallView, ...], str | None]:
        """Return a page of the tenant's installs by extension name, and the cursor of the next one.

        Raises:
            RefusalError: INVALID_REQUEST (cursor, limit), REGISTRY_UNAVAILABLE.
        """
        after = None if cursor is None else decode_cursor(cursor, 1)[0]
        async with self._database.tenant_session(tenant_id) as session:
            found = await InstallRepository(session, tenant_id).list_installs(limit=checked_limit(limit) + 1, after=after)
        return found[:limit], encode_cursor(found[limit - 1].extension_name) if len(found) > limit else None

    async def set_enabled(self, tenant_id: TenantId | str, install_id: str, *, enabled: bool, actor: str) -> InstallView:
        """Enable or disable an install. Disabled ones refuse calls within the daemons' cache seconds.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            installs = InstallRepository(session, tenant_id)
            if await installs.set_enabled(install_id, enabled=enabled):
                action = "install.enable" if enabled else "install.disable"
                await AuditRepository(session, TenantId(tenant_id)).record(actor=actor, action=action, subject=install_id)
            return _found(await installs.find(install_id))

    async def set_grants(self, tenant_id: TenantId | str, install_id: str, *, granted: Collection[str], actor: str) -> InstallView:
        """Replace what an install may do.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, INVALID_REQUEST (not asked for by the version), REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            installs = InstallRepository(session, tenant_id)
            before = _found(await installs.find(install_id))
            checked = _checked_grants(granted, before.declared)
            await installs.set_grants(install_id, checked, actor=actor)
            detail = {"before": sorted(before.granted), "granted": sorted(checked)}
            await AuditRepository(session, TenantId(tenant_id)).record(
                actor=actor, action="install.grant", subject=install_id, detail=detail
            )
            return _found(await installs.find(install_id))

    async def set_config(self, tenant_id: TenantId | str, install_id: str, *, config: Mapping[str, str], actor: str) -> InstallView:
        """Replace the settings of an install. The audit row names the keys, never the values.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, INVALID_REQUEST, REGISTRY_UNAVAILABLE.
        """
        settings = _checked_config(config)
        async with self._database.tenant_session(tenant_id) as session:
            installs = InstallRepository(session, tenant_id)
            before = _found(await installs.find(install_id))
            await installs.put_config(before.install_id, settings)
            audit = AuditRepository(session, TenantId(tenant_id))
            await audit.record(actor=actor, action="install.configure", subject=install_id, detail={"keys": sorted(settings)})
            return _found(await installs.find(install_id))

    async def set_limits(self, tenant_id: TenantId | str, install_id: str, *, limits: LimitWishes, actor: str) -> InstallView:
        """Replace the limits given to an install; what is None is the operator's default. What it stored stays, and can only shrink.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, INVALID_REQUEST (above what the product allows), REGISTRY_UNAVAILABLE.
        """
        checked = _checked_limits(limits)
        async with self._database.tenant_session(tenant_id) as session:
            installs = InstallRepository(session, tenant_id)
            before = _found(await installs.find(install_id))
            await installs.set_limits(install_id, checked)
            detail = {"before": _given(before.limits), "limits": _given(checked)}
            await AuditRepository(session, TenantId(tenant_id)).record(
                actor=actor, action="install.limit", subject=install_id, detail=detail
            )
            return _found(await installs.find(install_id))

    async def set_egress_hosts(
        self, tenant_id: TenantId | str, install_id: str, *, hosts: Collection[str] | None, actor: str
    ) -> InstallView:
        """Replace what the tenant leaves of the hosts that the manifest declares; None leaves all of them.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, INVALID_REQUEST (not declared by the version), REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            installs = InstallRepository(session, tenant_id)
            before = _found(await installs.find(install_id))
            checked = _checked_hosts(hosts, before.egress.rules)
            await installs.set_egress_hosts(install_id, checked)
            detail = {"before": before.egress.hosts and sorted(before.egress.hosts), "hosts": checked and sorted(checked)}
            await AuditRepository(session, TenantId(tenant_id)).record(
                actor=actor, action="install.egress", subject=install_id, detail=detail
            )
            return _found(await installs.find(install_id))

    async def set_egress_secrets(
        self, tenant_id: TenantId | str, install_id: str, *, bindings: Collection[SecretBinding], actor: str
    ) -> InstallView:
        """Replace the secrets that the daemon puts into headers for hosts; the extension writes a placeholder and never sees them.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, INVALID_REQUEST (malformed, or a host that the version does not declare over https and
                that port), REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            installs = InstallRepository(session, tenant_id)
            before = _found(await installs.find(install_id))
            checked = _checked_bindings(bindings, before.egress.rules)
            await installs.set_egress_secrets(install_id, checked)
            # Names, never values: there are none here.
            detail = {"bindings": [asdict(binding) for binding in checked]}
            await AuditRepository(session, TenantId(tenant_id)).record(
                actor=actor, action="install.egress_secrets", subject=install_id, detail=detail
            )
            return _found(await installs.find(install_id))

    async def set_egress_count(self, tenant_id: TenantId | str, install_id: str, *, duration: timedelta, actor: str) -> InstallView:
        """Have the list of hosts counted rather than enforced for some time from now; none ends it. For operators only.

        Nothing but that list is relaxed: capability, operator's ceiling, scheme, port, addresses and sizes hold as ever (T10).

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, INVALID_REQUEST (longer than 14 days), REGISTRY_UNAVAILABLE.
        """
        if not timedelta(0) <= duration <= COUNT_MODE_MOST:
            raise RefusalError(Reason.INVALID_REQUEST, f"The list of hosts can be counted for 0 to {COUNT_MODE_MOST.days} days.")
        async with self._database.tenant_session(tenant_id) as session:
            installs = InstallRepository(session, tenant_id)
            if not await installs.set_egress_count(install_id, duration.total_seconds()):
                raise no_such_install()
            changed = _found(await installs.find(install_id))
            detail = {"until": None if not duration else str(changed.egress.count_until)}
            await AuditRepository(session, TenantId(tenant_id)).record(
                actor=actor, action="install.egress_count", subject=install_id, detail=detail
            )
            return changed

    async def uninstall(self, tenant_id: TenantId | str, install_id: str, *, purge: bool = False, actor: str) -> None:
        """Take an install away. Its settings and stored data stay for the next install of the same extension, unless `purge`.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            if not await InstallRepository(session, tenant_id).uninstall(install_id, purge=purge):
                raise no_such_install()
            audit = AuditRepository(session, TenantId(tenant_id))
            await audit.record(actor=actor, action="install.delete", subject=install_id, detail={"purge": purge})

    async def _verified(self, extension_ref: str, version: str | None) -> str | None:
        """Have the signature checked, and return the version it was checked for: that one is installed, whatever is latest by then."""
        if self._verify_bundle is None:
            return version
        async with self._database.session() as session:
            chosen = await _choose(session, extension_ref, version)
            found = await VersionRepository(session).find_loadable(chosen.content_hash)
        if found is None:
            raise RefusalError(Reason.VERSION_NOT_FOUND, "The version is gone; choose another one.")
        await self._verify_bundle(found[0])
        return chosen.version


async def _choose(session: Session, extension_ref: str, version: str | None) -> VersionRow:
    versions = VersionRepository(session)
    chosen = await versions.find_latest(extension_ref) if version is None else await versions.get_published(extension_ref, version)
    if chosen is None:
        raise RefusalError(Reason.VERSION_NOT_FOUND, "The extension has no published version; check its name.")
    if await versions.is_denied(ContentHash(chosen.content_hash)):
        raise RefusalError(Reason.HASH_DENIED, "This version was revoked; choose another one.")
    if chosen.yanked_at is not None:
        raise RefusalError(Reason.VERSION_YANKED, "This version was withdrawn; choose another one.")
    return chosen


def _checked_grants(granted: Collection[str] | None, declared: Collection[str]) -> tuple[str, ...]:
    asked = frozenset(declared)
    if granted is None:
        missing = sorted(asked - ALWAYS)
        if missing:
            raise RefusalError(
                Reason.CONSENT_REQUIRED,
                "The extension asks for capabilities; say which of them you grant (none is an answer too).",
                metadata={"missing": ",".join(missing)},
            )
        return ()
    try:
        names = frozenset(normalise(name) for name in granted)
    except ValueError as exc:
        raise RefusalError(Reason.INVALID_REQUEST, "A granted capability is unknown; grant only what the extension asks for.") from exc
    # SECURITY: a grant beyond the manifest would silently widen the next version's reach.
    beyond = sorted(names - asked - ALWAYS)
    if beyond:
        raise RefusalError(
            Reason.INVALID_REQUEST, "Grant only what the extension asks for; remove the rest.", metadata={"undeclared": ",".join(beyond)}
        )
    return tuple(sorted(names & asked))


def _checked_hosts(hosts: Collection[str] | None, declared: Collection[EgressRule]) -> tuple[str, ...] | None:
    if hosts is None:
        return None
    if len(hosts) > MAX_HOSTS or not all(map(is_host_pattern, hosts)):
        detail = f'Name at most {MAX_HOSTS} hosts, such as "api.example.com" or "*.example.com", in lower case.'
        raise RefusalError(Reason.INVALID_REQUEST, detail)
    # SECURITY: as with capabilities, what is allowed beyond the manifest would silently widen the next version's reach.
    beyond = sorted(host for host in hosts if not covers(declared, host))
    if beyond:
        detail = "Allow only hosts that the extension declares; remove the rest."
        raise RefusalError(Reason.INVALID_REQUEST, detail, metadata={"undeclared": ",".join(beyond)[:512]})
    return tuple(sorted(set(hosts)))


def _checked_bindings(bindings: Collection[SecretBinding], declared: Collection[EgressRule]) -> tuple[SecretBinding, ...]:
    places = {(binding.host, binding.port, binding.header, binding.secret) for binding in bindings}
    if len(bindings) > MAX_BINDINGS or len(places) != len(bindings) or not all(binding.is_valid for binding in bindings):
        detail = f"Bind at most {MAX_BINDINGS} secrets, each by name to one header, one exact host and its port."
        raise RefusalError(Reason.INVALID_REQUEST, detail)
    for binding in bindings:
        if not any(host_matches(rule.host, binding.host) and rule.admits("https", binding.port) for rule in declared):
            detail = "Bind secrets only to hosts that the extension declares, over https."
            raise RefusalError(Reason.INVALID_REQUEST, detail, metadata={"undeclared": f"{binding.host}:{binding.port}"})
    return tuple(sorted(bindings, key=astuple))


def _checked_config(config: Mapping[str, str]) -> dict[str, str]:
    if len(config) > _MAX_CONFIG_ENTRIES:
        raise RefusalError(Reason.INVALID_REQUEST, f"Give at most {_MAX_CONFIG_ENTRIES} settings.")
    size = 0
    for key, value in config.items():
        if _CONFIG_KEY.match(key) is None or "\0" in value:
            raise RefusalError(Reason.INVALID_REQUEST, "Settings are text under names of 1 to 128 of A-Z a-z 0-9 _ . -, without NUL.")
        try:
            size += len(key) + len(value.encode("utf-8"))
        except UnicodeEncodeError as exc:
            raise RefusalError(Reason.INVALID_REQUEST, "A setting is not valid Unicode text.") from exc
    if size > _MAX_CONFIG_BYTES:
        raise RefusalError(Reason.INVALID_REQUEST, f"Settings may take {_MAX_CONFIG_BYTES} bytes in all.")
    return dict(config)


def _checked_limits(limits: LimitWishes) -> LimitWishes:
    ceiling = asdict(OPERATOR_CEILING)
    for field in fields(LimitWishes):
        value = getattr(limits, field.name)
        if value is not None and not 1 <= value <= ceiling[field.name]:
            raise RefusalError(Reason.INVALID_REQUEST, f"The limit {field.name} must be 1 to {ceiling[field.name]}.")
    return limits


def _given(limits: LimitWishes) -> dict[str, int]:
    return {name: value for name, value in asdict(limits).items() if value is not None}


def _found(install: InstallView | None) -> InstallView:
    if install is None:
        raise no_such_install()
    return install
