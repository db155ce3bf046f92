"""Secrets of an install: set, named and deleted, never read back.

Attack this stops (T6): whoever takes over an administrator's session, or this process, gets no value that was set before.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gateway.auth import MANAGE, READ
from gateway.problems import documented
from gateway.routes.admin.access import INSTALL_ROUTE, CallerOf, TenantParameter
from gateway.routes.admin.models import NewSecret, PageModel, SecretModel
from registry.domain.errors import Reason
from registry.services.secrets import SecretWriter


def build_router(secrets: SecretWriter) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/installs/{install_id}/secrets", tags=["installs"])

    @router.get("", responses=documented(*INSTALL_ROUTE))
    async def list_secrets(caller: CallerOf, install_id: str, tenant_id: TenantParameter = None) -> PageModel[SecretModel]:
        """List the secrets of an install, 64 at most, on one page, without their values. Role ext:read or ext:manage."""
        found = await secrets.list(caller.tenant(tenant_id, READ, MANAGE), install_id)
        return PageModel(items=[SecretModel.model_validate(secret) for secret in found])

    @router.put("/{name}", responses=documented(*INSTALL_ROUTE, Reason.NOT_FOUND, Reason.QUOTA_EXCEEDED, Reason.PAYLOAD_TOO_LARGE))
    async def set_secret(caller: CallerOf, install_id: str, name: str, secret: NewSecret, tenant_id: TenantParameter = None) -> SecretModel:
        """Set a secret, or replace its value. Role ext:manage."""
        tenant = caller.tenant(tenant_id, MANAGE)
        value = secret.value.get_secret_value()
        written = await secrets.put(tenant, install_id, name, value=value, expires_at=secret.expires_at, actor=caller.actor)
        return SecretModel.model_validate(written)

    @router.delete("/{name}", status_code=204, responses=documented(*INSTALL_ROUTE, Reason.NOT_FOUND))
    async def delete_secret(caller: CallerOf, install_id: str, name: str, tenant_id: TenantParameter = None) -> Response:
        """Delete a secret. Role ext:manage."""
        await secrets.delete(caller.tenant(tenant_id, MANAGE), install_id, name, actor=caller.actor)
        return Response(status_code=204)

    return router
