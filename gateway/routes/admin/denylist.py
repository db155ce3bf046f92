"""Content that must not run any more. The platform's operators only; nothing takes a revocation back."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.auth import OPERATE
from gateway.problems import documented
from gateway.routes.admin.access import EVERY_ROUTE, CallerOf, PageOf
from gateway.routes.admin.models import NewRevocation, PageModel, RevocationModel, RevocationResult
from registry.services.revocations import RevocationService


def build_router(revocations: RevocationService) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/denylist", tags=["denylist"])

    @router.post("", status_code=201, responses=documented(*EVERY_ROUTE))
    async def deny(caller: CallerOf, wanted: NewRevocation) -> RevocationResult:
        """Revoke a content hash for every tenant, published or not. Role ext:operate."""
        caller.require(OPERATE)
        added = await revocations.deny(wanted.content_hash, wanted.reason, caller.actor)
        return RevocationResult(content_hash=wanted.content_hash, added=added)

    @router.get("", responses=documented(*EVERY_ROUTE))
    async def list_revocations(caller: CallerOf, page: PageOf) -> PageModel[RevocationModel]:
        """List revocations, newest first. Role ext:operate."""
        caller.require(OPERATE)
        found, next_cursor = await revocations.list(limit=page.limit, cursor=page.cursor)
        return PageModel(items=[RevocationModel.model_validate(revocation) for revocation in found], next_cursor=next_cursor)

    return router
