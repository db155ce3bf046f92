"""Bounds every request body in bytes and in time, while it streams and before anything is kept of it.

Attacks this stops: a body that is larger than said or than allowed, buffered whole before somebody measures it; a body that comes one
byte a second and holds its place for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.domain.errors import Reason, RefusalError


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyAllowance:
    """What a request's body may take."""

    size_bytes: int
    seconds: float
    """From the first time the application asks for a part, to the last part."""


class BodyLimitMiddleware:
    """Refuses within the application's own `receive`, so that who is not authenticated is told that first.

    Args:
        app: the application; it answers RefusalErrors.
        allowance: of a request.
    """

    def __init__(self, app: ASGIApp, *, allowance: Callable[[Scope], BodyAllowance]) -> None:
        self._app = app
        self._allowance = allowance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            receive = _BoundedBody(scope, receive, self._allowance(scope))
        await self._app(scope, receive, send)


class _BoundedBody:
    """The `receive` of one request."""

    def __init__(self, scope: Scope, receive: Receive, allowance: BodyAllowance) -> None:
        self._scope = scope
        self._receive = receive
        self._allowance = allowance
        self._received = 0
        self._ends_at: float | None = None
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        if self._ends_at is None:
            self._ends_at = asyncio.get_running_loop().time() + self._allowance.seconds
            self._check(_content_length(self._scope))
        try:
            async with asyncio.timeout_at(self._ends_at):
                message = await self._receive()
        except TimeoutError as error:
            detail = f"The body did not arrive within {self._allowance.seconds:g} seconds."
            raise RefusalError(Reason.INVALID_REQUEST, detail) from error
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._check(self._received)
            self._complete = not message.get("more_body", False)
        return message

    def _check(self, size: int) -> None:
        if size > self._allowance.size_bytes:
            limit = self._allowance.size_bytes
            raise RefusalError(Reason.PAYLOAD_TOO_LARGE, f"The body may have at most {limit} bytes.", metadata={"limit_bytes": str(limit)})


def _content_length(scope: Scope) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    # The server has checked the grammar; what is odd nevertheless is left to the counting.
    return int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() else 0
