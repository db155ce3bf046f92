"""Installs of a tenant: what it runs, what it granted, with which settings."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter
from starlette.responses import Response

from gateway.auth import MANAGE, OPERATE, READ, Caller
from gateway.problems import documented
from gateway.routes.admin.access import TENANT_ROUTE, CallerOf, PageOf, TenantParameter
from gateway.routes.admin.models import InstallChange, InstallCreated, InstallDetail, InstallModel, NewInstall, PageModel
from gateway.routes.admin.warming import Warmer
from registry.domain.egress import SecretBinding
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId
from registry.domain.limits import LimitWishes
from registry.services.installing import InstallService, InstallView

_INSTALLING = (
    Reason.VERSION_NOT_FOUND,
    Reason.VERSION_YANKED,
    Reason.HASH_DENIED,
    Reason.SIGNATURE_REJECTED,
    Reason.CONSENT_REQUIRED,
    Reason.ALREADY_INSTALLED,
)


def build_router(installs: InstallService, warmer: Warmer) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/installs", tags=["installs"])

    @router.post("", status_code=201, responses=documented(*TENANT_ROUTE, *_INSTALLING))
    async def create_install(caller: CallerOf, wanted: NewInstall, tenant_id: TenantParameter = None) -> InstallCreated:
        """Install a published version for a tenant, enabled, with what the tenant grants. Role ext:manage."""
        tenant = caller.tenant(tenant_id, MANAGE)
        install = await installs.install(
            tenant,
            wanted.extension,
            version=wanted.version,
            granted=wanted.granted,
            config=wanted.config,
            limits=LimitWishes(**wanted.limits.model_dump()),
            endpoint_policy=wanted.endpoint_policy,
            egress_hosts=wanted.egress_hosts,
            actor=caller.actor,
        )
        warmth = await warmer.warm(install.content_hash)
        return InstallCreated.model_validate(install).model_copy(update={"warm": warmth})

    @router.get("", responses=documented(*TENANT_ROUTE))
    async def list_installs(caller: CallerOf, page: PageOf, tenant_id: TenantParameter = None) -> PageModel[InstallModel]:
        """List a tenant's installs. Role ext:read or ext:manage."""
        tenant = caller.tenant(tenant_id, READ, MANAGE)
        found, next_cursor = await installs.list(tenant, limit=page.limit, cursor=page.cursor)
        return PageModel(items=[InstallModel.model_validate(install) for install in found], next_cursor=next_cursor)

    @router.get("/{install_id}", responses=documented(*TENANT_ROUTE, Reason.EXTENSION_NOT_INSTALLED))
    async def get_install(caller: CallerOf, install_id: str, tenant_id: TenantParameter = None) -> InstallDetail | InstallModel:
        """Return an install; its settings only to those who may change them. Role ext:read or ext:manage."""
        install = await installs.get(caller.tenant(tenant_id, READ, MANAGE), install_id)
        may_change = bool(caller.user.roles & {MANAGE, OPERATE})
        return (InstallDetail if may_change else InstallModel).model_validate(install)

    @router.patch("/{install_id}", responses=documented(*TENANT_ROUTE, Reason.EXTENSION_NOT_INSTALLED))
    async def change_install(caller: CallerOf, install_id: str, change: InstallChange, tenant_id: TenantParameter = None) -> InstallDetail:
        """Enable or disable an install, replace its grants, settings, limits or hosts; one at a time. Role ext:manage.

        That its list of hosts is counted rather than enforced for some days is the operator's to say: role ext:operate.
        """
        changed = await _change(installs, caller, caller.tenant(tenant_id, MANAGE), install_id, change)
        return InstallDetail.model_validate(changed)

    @router.delete("/{install_id}", status_code=204, responses=documented(*TENANT_ROUTE, Reason.EXTENSION_NOT_INSTALLED))
    async def delete_install(caller: CallerOf, install_id: str, *, purge: bool = False, tenant_id: TenantParameter = None) -> Response:
        """Uninstall; settings and stored data stay for the next install unless `purge`. Role ext:manage."""
        await installs.uninstall(caller.tenant(tenant_id, MANAGE), install_id, purge=purge, actor=caller.actor)
        return Response(status_code=204)

    return router


async def _change(installs: InstallService, caller: Caller, tenant: TenantId, install_id: str, change: InstallChange) -> InstallView:
    if change.enabled is not None:
        return await installs.set_enabled(tenant, install_id, enabled=change.enabled, actor=caller.actor)
    if change.granted is not None:
        return await installs.set_grants(tenant, install_id, granted=change.granted, actor=caller.actor)
    if change.config is not None:
        return await installs.set_config(tenant, install_id, config=change.config, actor=caller.actor)
    if change.limits is not None:
        limits = LimitWishes(**change.limits.model_dump())
        return await installs.set_limits(tenant, install_id, limits=limits, actor=caller.actor)
    if change.egress is not None:
        return await installs.set_egress_hosts(tenant, install_id, hosts=change.egress.hosts, actor=caller.actor)
    if change.egress_secrets is not None:
        bindings = [SecretBinding(**binding.model_dump()) for binding in change.egress_secrets]
        return await installs.set_egress_secrets(tenant, install_id, bindings=bindings, actor=caller.actor)
    if change.egress_count_days is not None:
        # SECURITY: it takes a wall down, and the tenant must not be the one who says when (T10).
        caller.require(OPERATE)
        days = timedelta(days=change.egress_count_days)
        return await installs.set_egress_count(tenant, install_id, duration=days, actor=caller.actor)
    raise RefusalError(Reason.INVALID_REQUEST, "Give exactly one of the fields.")
