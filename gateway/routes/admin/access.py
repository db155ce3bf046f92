"""What stands before every admin route: who calls, for which tenant, which page.

Attacks this stops: a route without a check (the gate is around the whole application, so that not even its 404s can be listed by
strangers, and no body of theirs is parsed); an address spelt so that a proxy in front does not know it; an administrator of one tenant
reaching into another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Query, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.auth import Authenticator, Caller
from gateway.problems import problem_response
from registry.domain.errors import Reason, RefusalError
from registry.domain.paths import PathError, check_normal_form

EVERY_ROUTE: Final = (
    Reason.UNAUTHENTICATED,
    Reason.PERMISSION_MISSING,
    Reason.INVALID_REQUEST,
    Reason.REGISTRY_UNAVAILABLE,
    Reason.INTERNAL,
)
"""What any route may refuse with, for the documentation."""
TENANT_ROUTE: Final = (*EVERY_ROUTE, Reason.TENANT_FORBIDDEN)
INSTALL_ROUTE: Final = (*TENANT_ROUTE, Reason.EXTENSION_NOT_INSTALLED)
_SAFETY = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"), (b"vary", b"Authorization"))


class Gate:
    """Lets authenticated requests pass to `app`; the routes ask for roles.

    Args:
        app: the admin application.
        authenticator: knows users.
    """

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        try:
            scope["caller"] = self._authenticator.authenticate(scope["headers"])
            _check_spelling(scope)
        except RefusalError as refusal:
            scope["route_template"] = "/api/admin/v1"
            await problem_response(refusal, request_id=scope["request_id"])(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in _SAFETY}
                others = [header for header in message.get("headers", ()) if header[0].lower() not in names]
                message["headers"] = [*others, *_SAFETY]
            await send(message)

        await self._app(scope, receive, send_safely)


def _check_spelling(scope: Scope) -> None:
    """Refuse every spelling of an address but the plain one.

    Raises:
        RefusalError: INVALID_REQUEST.
    """
    # SECURITY: routes match the decoded path, proxies and firewalls the raw one: "/%61pi/admin" must not pass where "/api/admin" does not.
    raw_path = scope["raw_path"].decode("latin-1")
    try:
        check_normal_form(raw_path)
    except PathError as error:
        raise RefusalError(Reason.INVALID_REQUEST, f"Send the path in normal form: {error}.") from error


def _caller(request: Request) -> Caller:
    caller: Caller = request.scope["caller"]
    return caller


CallerOf = Annotated[Caller, Depends(_caller)]
TenantParameter = Annotated[
    str | None, Query(alias="tenant_id", max_length=128, description="The tenant; only ext:operate may name another than its token's.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which page of a list."""

    limit: int
    cursor: str | None


def _page(
    limit: Annotated[int, Query(ge=1, le=100, description="Entries at most.")] = 50,
    cursor: Annotated[str | None, Query(max_length=2048, description="next_cursor of the page before.")] = None,
) -> Page:
    return Page(limit=limit, cursor=cursor)


PageOf = Annotated[Page, Depends(_page)]
