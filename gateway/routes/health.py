"""Liveness, readiness and metrics. None of them needs a credential, and none says more than it must."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import JSONResponse, Response

Check = Callable[[], Awaitable[bool]]
_NO_STORE = {"cache-control": "no-store"}


def build_router(*, checks: Mapping[str, Check], registry: CollectorRegistry) -> APIRouter:
    """Return the routes.

    Args:
        checks: what must hold for this process to be given traffic, by name. A check never raises.
        registry: of the metrics.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/healthz")
    async def healthz() -> Response:
        """Say that the event loop turns."""
        return JSONResponse({"status": "ok"}, headers=_NO_STORE)

    @router.get("/readyz")
    async def readyz() -> Response:
        """Say whether requests can be answered, and what is missing if not."""
        missing = [name for name, check in checks.items() if not await check()]
        body = {"status": "unavailable", "missing": missing} if missing else {"status": "ready"}
        return JSONResponse(body, status_code=503 if missing else 200, headers=_NO_STORE)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Say what was counted, for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST, headers=_NO_STORE)

    return router
