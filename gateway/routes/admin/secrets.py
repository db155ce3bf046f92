"""Secrets of an install: set, named and deleted, never read back.

Attack this stops (T6): whoever takes over an administrator's session, or this process, gets no value that was set before.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gateway.auth import MANAGE, READ
from gateway.problems import documented
from gateway.routes.admin.access import CallerOf, TenantParameter
from gateway.routes.admin.models import NewSecret, SecretModel, SecretsModel
from registry.domain.errors import Reason
from registry.services.secrets import SecretWriter

_ALWAYS = (
    Reason.UNAUTHENTICATED,
    Reason.PERMISSION_MISSING,
    Reason.TENANT_FORBIDDEN,
    Reason.INVALID_REQUEST,
    Reason.EXTENSION_NOT_INSTALLED,
    Reason.REGISTRY_UNAVAILABLE,
    Reason.INTERNAL,
)


def build_router(secrets: SecretWriter) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/installs/{install_id}/secrets", tags=["installs"])

    @router.get("", responses=documented(*_ALWAYS))
    async def list_secrets(caller: CallerOf, install_id: str, tenant_id: TenantParameter = None) -> SecretsModel:
        """List the secrets of an install: names, versions and expiry, never values. Role ext:read or ext:manage."""
        found = await secrets.list(caller.tenant(tenant_id, READ, MANAGE), install_id)
        return SecretsModel(items=[SecretModel.model_validate(secret) for secret in found])

    @router.put("/{name}", responses=documented(*_ALWAYS, Reason.NOT_FOUND, Reason.QUOTA_EXCEEDED, Reason.PAYLOAD_TOO_LARGE))
    async def set_secret(caller: CallerOf, install_id: str, name: str, secret: NewSecret, tenant_id: TenantParameter = None) -> SecretModel:
        """Set a secret, or replace its value. Role ext:manage."""
        tenant = caller.tenant(tenant_id, MANAGE)
        value = secret.value.get_secret_value()
        written = await secrets.put(tenant, install_id, name, value=value, expires_at=secret.expires_at, actor=caller.actor)
        return SecretModel.model_validate(written)

    @router.delete("/{name}", status_code=204, responses=documented(*_ALWAYS, Reason.NOT_FOUND))
    async def delete_secret(caller: CallerOf, install_id: str, name: str, tenant_id: TenantParameter = None) -> Response:
        """Delete a secret. Role ext:manage."""
        await secrets.delete(caller.tenant(tenant_id, MANAGE), install_id, name, actor=caller.actor)
        return Response(status_code=204)

    return router
