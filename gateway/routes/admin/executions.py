"""The execution log of a tenant."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.auth import MANAGE, READ
from gateway.problems import documented
from gateway.routes.admin.access import TENANT_ROUTE, CallerOf, PageOf, TenantParameter
from gateway.routes.admin.models import ExecutionDetail, ExecutionModel, PageModel
from registry.domain.errors import Reason
from registry.services.executions import ExecutionQuery


def build_router(executions: ExecutionQuery) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/executions", tags=["executions"])

    @router.get("", responses=documented(*TENANT_ROUTE))
    async def list_executions(caller: CallerOf, page: PageOf, tenant_id: TenantParameter = None) -> PageModel[ExecutionModel]:
        """List a tenant's executions, newest first. Role ext:read or ext:manage."""
        tenant = caller.tenant(tenant_id, READ, MANAGE)
        found, next_cursor = await executions.list_executions(tenant, limit=page.limit, cursor=page.cursor)
        return PageModel(items=[ExecutionModel.model_validate(record) for record in found], next_cursor=next_cursor)

    @router.get("/{execution_id}", responses=documented(*TENANT_ROUTE, Reason.NOT_FOUND))
    async def get_execution(caller: CallerOf, execution_id: str, tenant_id: TenantParameter = None) -> ExecutionDetail:
        """Return one execution, with what was logged and what was denied. Role ext:read or ext:manage."""
        tenant = caller.tenant(tenant_id, READ, MANAGE)
        return ExecutionDetail.model_validate(await executions.get_execution(tenant, execution_id))

    return router
