"""Gives every request an id, the caller's where it has a valid one, and says it in the answer and in every log line."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.domain.ids import is_request_id, new_id
from registry.logs import correlated

HEADER = b"x-request-id"


class RequestIdMiddleware:
    """Sets `scope["request_id"]`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [header for header in message.get("headers", ()) if header[0].lower() != HEADER]
                message["headers"] = [*others, (HEADER, request_id.encode())]
            await send(message)

        with correlated(request_id=request_id):
            await self._app(scope, receive, send_with_id)


def _request_id(scope: Scope) -> str:
    values = [value for name, value in scope["headers"] if name == HEADER]
    # SECURITY: it goes to logs, to the database and to guests; what is not of the grammar is replaced.
    text = values[0].decode("latin-1") if len(values) == 1 else ""
    return text if is_request_id(text) else new_id()
