"""From what a caller names to what may run: resolved from the registry, never from the caller.

Every answer is at most `ttl_seconds` old; that is how long a disabled install, a new grant or a revocation may take to be seen by a daemon.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from registry.database import Database
from registry.domain.capabilities import KNOWN, effective
from registry.domain.digests import is_content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId, is_extension_name, is_tenant_id, is_uuid
from registry.domain.records import LoadableBundle, ResolvedInstall
from registry.repositories.installs import InstallRepository, ResolvedRow
from registry.repositories.versions import VersionRepository
from registry.services.answer_cache import AnswerCache

MAX_TTL_SECONDS: Final = 5.0
"""A disabled install or a revocation takes effect within 5 s."""


class Resolver:
    """Answers what a call needs to know. Role ext_runner; used from one event loop.

    Args:
        database: of role ext_runner.
        ttl_seconds: how old an answer may be; 0 asks each time; at most 5.
        max_entries: answers kept of each kind.
        capability_ceiling: what the operator allows at all.
    """

    def __init__(
        self,
        database: Database,
        *,
        ttl_seconds: float = 2.0,
        max_entries: int = 10_000,
        capability_ceiling: Collection[str] = KNOWN,
    ) -> None:
        if not 0 <= ttl_seconds <= MAX_TTL_SECONDS or max_entries < 1:
            message = f"ttl_seconds must be 0 to {MAX_TTL_SECONDS} and max_entries at least 1"
            raise ValueError(message)
        self._database = database
        self._ceiling = frozenset(capability_ceiling)
        # SECURITY: the tenant is part of the key.
        self._installs: AnswerCache[tuple[str, str], ResolvedInstall] = AnswerCache(ttl_seconds=ttl_seconds, max_entries=max_entries)
        self._loadable: AnswerCache[str, LoadableBundle] = AnswerCache(ttl_seconds=ttl_seconds, max_entries=max_entries)
        self._served: AnswerCache[tuple[str, str], bool] = AnswerCache(ttl_seconds=ttl_seconds, max_entries=max_entries)
        self._denied: AnswerCache[str, bool] = AnswerCache(ttl_seconds=ttl_seconds, max_entries=max_entries)

    async def resolve(
        self,
        tenant_id: TenantId | str,
        extension_ref: str,
        *,
        install_id: str | None = None,
        version_id: str | None = None,
        content_hash: str | None = None,
    ) -> ResolvedInstall:
        """Return what a call of `tenant_id` to `extension_ref` (name or id) runs, and with which capabilities.

        Pins, where given, must be what is installed; they choose nothing. A withdrawn (yanked) version keeps running where it is installed.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED (also for another tenant's, and for what is no name or id at all), INSTALL_DISABLED,
                HASH_DENIED, PIN_MISMATCH, REGISTRY_UNAVAILABLE.
        """
        if not is_tenant_id(tenant_id) or not (is_extension_name(extension_ref) or is_uuid(extension_ref)):
            raise _not_installed()
        resolved = await self._installs.get((tenant_id, extension_ref), lambda: self._load_install(TenantId(tenant_id), extension_ref))
        pins = (("install_id", install_id, resolved.install_id), ("version_id", version_id, resolved.version_id))
        for name, wanted, actual in (*pins, ("content_hash", content_hash, resolved.content_hash)):
            if wanted is not None and wanted != actual:
                raise RefusalError(
                    Reason.PIN_MISMATCH, f"What is installed has another {name}; drop the pin or ask again.", metadata={"pin": name}
                )
        return resolved

    async def loadable(self, content_hash: str) -> LoadableBundle:
        """Return whom a load must find to have signed `content_hash`. Pending versions are included, so that a publish can warm.

        Raises:
            RefusalError: VERSION_NOT_FOUND, HASH_DENIED, REGISTRY_UNAVAILABLE.
        """
        if not is_content_hash(content_hash):
            raise RefusalError(Reason.VERSION_NOT_FOUND, "No version has this content hash.")
        return await self._loadable.get(content_hash, lambda: self._load_bundle(content_hash))

    async def is_interface_served(self, extension_ref: str, content_hash: str) -> bool:
        """Tell whether an enabled install of any tenant holds this published, unrevoked content.

        Raises:
            RefusalError: REGISTRY_UNAVAILABLE.
        """
        if not is_content_hash(content_hash) or not (is_extension_name(extension_ref) or is_uuid(extension_ref)):
            return False
        return await self._served.get((extension_ref, content_hash), lambda: self._load_served(extension_ref, content_hash))

    async def denied(self, content_hash: str) -> bool:
        """Tell whether `content_hash` was revoked.

        Raises:
            RefusalError: REGISTRY_UNAVAILABLE.
        """
        if not is_content_hash(content_hash):
            return False
        return await self._denied.get(content_hash, lambda: self._load_denied(content_hash))

    def invalidate(self) -> None:
        """Forget every answer."""
        for cache in (self._installs, self._loadable, self._served, self._denied):
            cache.invalidate()

    async def _load_install(self, tenant_id: TenantId, extension_ref: str) -> ResolvedInstall:
        async with self._database.tenant_session(tenant_id) as session:
            row = await InstallRepository(session, tenant_id).resolve(extension_ref)
        if row is None:
            raise _not_installed()
        if not row.is_enabled:
            raise RefusalError(Reason.INSTALL_DISABLED, "The install is disabled; enable it first.")
        if row.is_denied:
            raise RefusalError(Reason.HASH_DENIED, "The installed version was revoked; install another one.")
        return self._resolved(tenant_id, row)

    def _resolved(self, tenant_id: TenantId, row: ResolvedRow) -> ResolvedInstall:
        # SECURITY: roles on any endpoint could be walked around through an undeclared path, so they always enforce (T5).
        enforced = any(endpoint.roles for endpoint in row.endpoints)
        return ResolvedInstall(
            tenant_id=tenant_id,
            install_id=row.install_id,
            extension_id=row.extension_id,
            extension_name=row.extension_name,
            publisher=row.publisher,
            version_id=row.version_id,
            version=row.version,
            content_hash=row.content_hash,
            runtime=row.runtime,
            capabilities=effective(declared=row.declared, granted=row.granted, ceiling=self._ceiling),
            declared=row.declared,
            granted=row.granted,
            endpoints=row.endpoints,
            endpoint_policy="enforce" if enforced else row.endpoint_policy,
            limits=row.limits,
            config=row.config,
            egress=row.egress,
        )

    async def _load_bundle(self, content_hash: str) -> LoadableBundle:
        async with self._database.session() as session:
            found = await VersionRepository(session).find_loadable(content_hash)
        if found is None:
            raise RefusalError(Reason.VERSION_NOT_FOUND, "No version has this content hash.")
        bundle, denied = found
        if denied:
            raise RefusalError(Reason.HASH_DENIED, "This content was revoked.")
        return bundle

    async def _load_served(self, extension_ref: str, content_hash: str) -> bool:
        async with self._database.session() as session:
            return await VersionRepository(session).is_interface_served(extension_ref, content_hash)

    async def _load_denied(self, content_hash: str) -> bool:
        async with self._database.session() as session:
            return await VersionRepository(session).is_denied(content_hash)


def _not_installed() -> RefusalError:
    return RefusalError(Reason.EXTENSION_NOT_INSTALLED, "The extension is not installed for this tenant; check its name, or install it.")
