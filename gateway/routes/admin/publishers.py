"""Publishers and who may sign for them. The platform's operators only."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.auth import OPERATE, PUBLISH
from gateway.problems import documented
from gateway.routes.admin.access import EVERY_ROUTE, CallerOf, PageOf
from gateway.routes.admin.models import NewPublisher, NewSigner, PageModel, PublisherModel
from registry.domain.errors import Reason
from registry.domain.records import AllowedSigner
from registry.services.publishers import PublisherService


def build_router(publishers: PublisherService) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/publishers", tags=["publishers"])

    @router.post("", status_code=201, responses=documented(*EVERY_ROUTE, Reason.ALREADY_EXISTS))
    async def create_publisher(caller: CallerOf, wanted: NewPublisher) -> PublisherModel:
        """Create a publisher. Nobody may sign for it yet. Role ext:operate."""
        caller.require(OPERATE)
        return PublisherModel.model_validate(await publishers.create(wanted.name, caller.actor))

    @router.get("", responses=documented(*EVERY_ROUTE))
    async def list_publishers(caller: CallerOf, page: PageOf) -> PageModel[PublisherModel]:
        """List publishers by name. Role ext:operate or ext:publish."""
        caller.require(OPERATE, PUBLISH)
        found, next_cursor = await publishers.list(limit=page.limit, cursor=page.cursor)
        return PageModel(items=[PublisherModel.model_validate(publisher) for publisher in found], next_cursor=next_cursor)

    @router.get("/{name}", responses=documented(*EVERY_ROUTE, Reason.NOT_FOUND))
    async def get_publisher(caller: CallerOf, name: str) -> PublisherModel:
        """Return a publisher. Role ext:operate or ext:publish."""
        caller.require(OPERATE, PUBLISH)
        return PublisherModel.model_validate(await publishers.get(name))

    @router.post("/{name}/signers", status_code=201, responses=documented(*EVERY_ROUTE, Reason.NOT_FOUND))
    async def add_signer(caller: CallerOf, name: str, wanted: NewSigner) -> PublisherModel:
        """Allow one identity to sign for a publisher. Role ext:operate."""
        # SECURITY: who may add a signer may run code for every tenant that installs from this publisher.
        caller.require(OPERATE)
        signer = AllowedSigner(trust_domain=wanted.trust_domain, issuer=wanted.issuer, identity=wanted.identity)
        return PublisherModel.model_validate(await publishers.add_signer(name, signer, caller.actor))

    return router
