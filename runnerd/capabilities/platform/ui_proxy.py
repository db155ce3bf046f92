"""alga:extension/ui-proxy: routes of the host platform that an extension may call as itself (cap:ui.proxy).

Attack it stops: a guest that speaks with the runner's authority. The service token of the internal routes never goes along; the
extension's own `api_key` does, where it may read that secret anyway, and so does the user, where it may know who that is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named
from runnerd.capabilities.platform.client import PlatformAnswer, PlatformClient, PlatformError, PlatformRequest
from runnerd.capabilities.platform.identity import headers_of, user_headers_of
from runnerd.capabilities.platform.internal import NOT_FOUND, TOO_MANY, is_refused, log_failure
from runnerd.capabilities.platform.routes import RouteError, target_of
from runnerd.capabilities.platform.tokens import TokenFile, TokenFileError
from runnerd.capabilities.results import HostResult, failed, succeeded

API_KEY_SECRET: Final = "api_key"  # noqa: S105 - its name
SECRETS_GET: Final = "secrets.get"
_ROUTE_NOT_FOUND: Final = "route-not-found"
_DENIED: Final = "denied"
_BAD_REQUEST: Final = "bad-request"
_INTERNAL: Final = "internal"


class ApiKeys(Protocol):
    """Opens the secret `api_key` of an install."""

    async def find(self, grant: InvocationGrant) -> str | None:
        """Return the key; None where the install has none.

        Raises:
            PlatformError: there is one, and it cannot be opened.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UiProxy:
    """The platform as a guest's routes meet it."""

    client: PlatformClient
    token: TokenFile | None
    """Of the proxy alone."""
    internal_token: TokenFile | None
    """The one that opens internal routes, which is never sent here."""
    api_keys: ApiKeys | None
    answer_bytes: int

    async def forward(self, grant: InvocationGrant, target: str, payload: bytes | None) -> PlatformAnswer:
        """Send a checked route: GET without a payload, POST with one.

        Raises:
            PlatformError: no usable answer.
        """
        headers = [*headers_of(grant), *user_headers_of(grant), ("accept", "*/*"), *await self._keys(grant)]
        if payload is not None:
            key = grant.writes.key_for(b"ui-proxy", target.encode(), payload)
            headers += [("content-type", "application/json"), ("idempotency-key", key)]
        answer = await self.client.send(
            PlatformRequest(
                install_id=grant.install_id,
                method="GET" if payload is None else "POST",
                target=target,
                headers=tuple(headers),
                body=payload,
                most_answer_bytes=self.answer_bytes,
                deadline=grant.deadline,
            )
        )
        if payload is not None and answer.is_final:
            grant.writes.settle(key)
        return answer

    def own_token(self) -> str | None:
        """Return the token for guests' routes as it is now.

        Raises:
            TokenFileError: there is a file, and no usable token in it.
        """
        if self.token is None:
            return None
        token = self.token.read()
        # SECURITY: it would hand guests' routes the authority of the internal ones.
        if self.internal_token is not None and token == self.internal_token.read():
            raise TokenFileError(self.token.file, "holds the token that opens the internal routes; give the proxy one of its own")
        return token

    async def _keys(self, grant: InvocationGrant) -> list[tuple[str, str]]:
        headers: list[tuple[str, str]] = []
        try:
            token = self.own_token()
        except TokenFileError as error:
            raise PlatformError(str(error)) from error
        if token is not None:
            headers.append(("x-runner-auth", token))
        if self.api_keys is not None and SECRETS_GET in grant.capabilities:
            api_key = await self.api_keys.find(grant)
            if api_key is not None:
                headers.append(("x-api-key", api_key))
        return headers


def ui_proxy_handlers(proxy: UiProxy) -> Mapping[int, Handler]:
    """Return the handler, by number of the function."""

    async def call_route(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        route, payload = arguments
        try:
            target = target_of(str(route), grant.extension_id)
        except RouteError as error:
            log_failure(grant, "ui-proxy", f"route refused: {error}", level=logging.DEBUG)
            return failed(_BAD_REQUEST)
        try:
            answer = await proxy.forward(grant, target, payload if isinstance(payload, bytes) else None)
        except PlatformError as error:
            log_failure(grant, "ui-proxy", str(error))
            return failed(_INTERNAL)
        if answer.is_success:
            return succeeded(answer.body)
        # A guest brings about any 4xx at will.
        log_failure(grant, "ui-proxy", "not done", level=logging.DEBUG if answer.is_client_error else logging.WARNING, status=answer.status)
        return failed(_case_of(answer))

    return {function_named("alga:extension/ui-proxy", "call-route").number: call_route}


def _case_of(answer: PlatformAnswer) -> str:
    if answer.status == NOT_FOUND:
        return _ROUTE_NOT_FOUND
    if is_refused(answer) or answer.status == TOO_MANY:
        return _DENIED
    return _BAD_REQUEST if answer.is_client_error else _INTERNAL
