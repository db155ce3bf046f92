"""The catalogue of published extensions; the same for every tenant."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.auth import MANAGE, OPERATE, PUBLISH, READ
from gateway.problems import documented
from gateway.routes.admin.access import EVERY_ROUTE, CallerOf, PageOf
from gateway.routes.admin.models import ExtensionModel, PageModel, VersionModel
from registry.domain.errors import Reason
from registry.services.catalogue import CatalogueService

_READERS = (READ, MANAGE, PUBLISH, OPERATE)


def build_router(catalogue: CatalogueService) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/extensions", tags=["extensions"])

    @router.get("", responses=documented(*EVERY_ROUTE))
    async def list_extensions(caller: CallerOf, page: PageOf) -> PageModel[ExtensionModel]:
        """List extensions that have a published version, by name. Any role but ext:invoke."""
        caller.require(*_READERS)
        found, next_cursor = await catalogue.list_extensions(limit=page.limit, cursor=page.cursor)
        return PageModel(items=[ExtensionModel.model_validate(extension) for extension in found], next_cursor=next_cursor)

    @router.get("/{extension}/versions", responses=documented(*EVERY_ROUTE, Reason.NOT_FOUND))
    async def list_versions(caller: CallerOf, extension: str, page: PageOf) -> PageModel[VersionModel]:
        """List the published versions of an extension (name or id), highest first. Any role but ext:invoke."""
        caller.require(*_READERS)
        found, next_cursor = await catalogue.list_versions(extension, limit=page.limit, cursor=page.cursor)
        return PageModel(items=[VersionModel.model_validate(version) for version in found], next_cursor=next_cursor)

    return router
