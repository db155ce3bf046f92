"""The admin application: its routes, its documentation, its gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI
from starlette.types import ASGIApp

from gateway import problems
from gateway.auth import Authenticator
from gateway.routes.admin import bundles, denylist, executions, extensions, installs, measurements, publishers, schedules, secrets
from gateway.routes.admin.access import Gate
from gateway.routes.admin.bundles import Publishes
from gateway.routes.admin.models import Problem
from gateway.routes.admin.warming import Warmer
from registry.services.catalogue import CatalogueService
from registry.services.executions import ExecutionQuery
from registry.services.installing import InstallService
from registry.services.measurements import MeasurementQuery
from registry.services.publishers import PublisherService
from registry.services.revocations import RevocationService
from registry.services.schedule_administration import ScheduleAdministration
from registry.services.secrets import SecretWriter

BUNDLES_PATH: Final = "/bundles"
_BEARER = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminServices:
    """What the routes call."""

    publishing: Publishes
    publishers: PublisherService
    installs: InstallService
    secrets: SecretWriter
    executions: ExecutionQuery
    measurements: MeasurementQuery
    schedules: ScheduleAdministration
    revocations: RevocationService
    catalogue: CatalogueService
    warmer: Warmer


def build_admin_app(services: AdminServices, *, authenticator: Authenticator) -> ASGIApp:
    """Return the application, behind its gate: nothing of it, not even its documentation, answers without a credential."""
    app = FastAPI(
        title="extrunner admin",
        version="1",
        openapi_url="/openapi.json",
        # The pages would load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    problems.install(app)
    for router in (
        bundles.build_router(services.publishing),
        publishers.build_router(services.publishers),
        installs.build_router(services.installs, services.warmer),
        secrets.build_router(services.secrets),
        schedules.build_router(services.schedules),
        executions.build_router(services.executions),
        measurements.build_router(services.measurements),
        denylist.build_router(services.revocations),
        extensions.build_router(services.catalogue),
    ):
        app.include_router(router)
    _complete_documentation(app)
    return Gate(app, authenticator=authenticator)


def _complete_documentation(app: FastAPI) -> None:
    """Add what FastAPI does not know: the shape of problems, the credential, and that there is no 422."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            components["securitySchemes"] = {"bearer": _BEARER}
            schema["security"] = [{"bearer": []}]
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for unused in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(unused, None)
            app.openapi_schema = schema
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # the documented way to extend the schema
