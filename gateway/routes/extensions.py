"""`/api/ext/{extension_id}` and `/api/ext/{extension_id}/{path…}`: one HTTP request becomes one Execute call.

    method → who (bearer) → role → path → headers → body (bounded) → Execute (deadline) → outcome → headers that make it harmless

Attacks this stops: T5 (paths), T8 (tenant and user come from the verified token only), T14 (a guest's HTML on our origin), T21 (no
byte of a body is read before the caller is known).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import structlog
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gateway import compression, policies
from gateway.auth import INVOKE, Authenticator
from gateway.problems import problem_response
from gateway.runner_client import ExtensionCall, GuestResponse, RunnerClient
from registry.domain.digests import is_content_hash
from registry.domain.errors import Reason, RefusalError

TEMPLATE: Final = "/api/ext/{extension_id}/{path}"
_PIN_HEADER = b"x-ext-content-hash"
_EXECUTION_HEADER = "x-ext-execution-id"
_ALLOW = ", ".join(policies.METHODS)
_CORS_REQUEST_HEADERS = "authorization, content-type, if-match, if-none-match, x-ext-content-hash, x-idempotency-key, x-request-id"
_CORS_RESPONSE_HEADERS = f"x-request-id, {_EXECUTION_HEADER}, etag, location, retry-after"
_CORS_MAX_AGE_SECONDS = "600"
_NO_CONTENT = 204
_WITHOUT_BODY = frozenset({_NO_CONTENT, 205, 304})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionPolicy:
    """What the operator decides about calls of extensions."""

    execute_timeout_seconds: float
    buffered_bytes: int
    """Bodies of all requests that are held at the same time."""
    tenant_bytes: int
    """Of those, of one tenant: slow or large uploads of one must not be everybody's OVERLOADED. At least one largest body."""
    own_origin: str | None = None
    cors_origins: frozenset[str] = frozenset()


class ExtensionsEndpoint:
    """The ASGI application under `/api/ext/`.

    Args:
        authenticator: knows users.
        runner: executes.
        policy: the operator's.
    """

    def __init__(self, *, authenticator: Authenticator, runner: RunnerClient, policy: ExtensionPolicy) -> None:
        self._authenticator = authenticator
        self._runner = runner
        self._policy = policy
        self._buffered_bytes = 0
        self._buffered_of: Counter[str] = Counter()

    def route(self) -> Route:
        """Return the route. One for both forms of the address, and without a redirect between them (N40)."""
        return Route("/api/ext/{rest:path}", endpoint=self, include_in_schema=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["route_template"] = TEMPLATE
        try:
            response = self._preflight(scope) if scope["method"] == "OPTIONS" else await self._call(scope, receive)
        except RefusalError as refusal:
            response = _refused(scope, refusal)
        if response is None:
            return
        for name, value in self._cors(scope):
            response.headers[name] = value
        await response(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive) -> Response | None:
        method, headers = scope["method"], scope["headers"]
        if method not in policies.METHODS:
            raise RefusalError(Reason.METHOD_NOT_ALLOWED, f"Use one of {_ALLOW}.")
        caller = self._authenticator.authenticate(headers)
        caller.require(INVOKE)
        address = policies.parse_address(scope["raw_path"])
        policies.check_header_size(headers)
        query = policies.parse_query(scope["query_string"])
        pin = _pin(scope)
        buffer = _Buffer(self, caller.user.tenant)
        try:
            body = await buffer.fill(receive)
            call = ExtensionCall(
                request_id=scope["request_id"],
                # SECURITY: the token's tenant; no header, path or query has a say (T8).
                tenant_id=caller.user.tenant,
                extension_id=address.extension_id,
                content_hash=pin,
                method="GET" if method == "HEAD" else method,
                path=address.path,
                query=query,
                headers=policies.request_headers(
                    headers, request_id=scope["request_id"], tenant_id=caller.user.tenant, extension_id=address.extension_id
                ),
                body=body or None,
                subject_token=caller.token,
            )
            answer = await self._execute_while_connected(call, receive)
        finally:
            buffer.release()
        return None if answer is None else await self._response(answer, scope)

    async def _execute_while_connected(self, call: ExtensionCall, receive: Receive) -> GuestResponse | None:
        """Execute, and cancel the execution when the caller goes away; then there is no answer."""
        execution = asyncio.ensure_future(self._runner.execute(call, timeout_seconds=self._policy.execute_timeout_seconds))
        departure = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({execution, departure}, return_when=asyncio.FIRST_COMPLETED)
            if execution.done():
                return await execution
            _log.info("caller_gone")
            return None
        finally:
            for task in (execution, departure):
                task.cancel()
            await asyncio.gather(execution, departure, return_exceptions=True)

    async def _response(self, answer: GuestResponse, scope: Scope) -> Response:
        status = answer.status
        if not 200 <= status <= 599:  # noqa: PLR2004 - the statuses of HTTP.
            raise RefusalError(
                Reason.GUEST_INVALID_RESPONSE, "The extension answered an invalid status.", metadata={"execution_id": answer.execution_id}
            )
        headers = [
            *policies.response_headers(answer.headers, request_path=scope["raw_path"].decode("ascii"), own_origin=self._policy.own_origin)
        ]
        if answer.execution_id:
            headers.append((_EXECUTION_HEADER, answer.execution_id))
        if status in _WITHOUT_BODY:
            # SECURITY: bytes behind such a status would be read as the next response of the connection.
            headers = [(name, value) for name, value in headers if name not in {"content-type", "content-disposition"}]
            body = b""
        else:
            body, headers = await _encoded(answer.body, headers, scope["headers"])
            headers.append(("content-length", str(len(body))))
        response = Response(b"" if scope["method"] == "HEAD" else body, status_code=status)
        response.raw_headers = [(name.encode(), value.encode()) for name, value in headers]
        return response

    def _preflight(self, scope: Scope) -> Response:
        if _origin(scope) in self._policy.cors_origins and any(name == b"access-control-request-method" for name, _ in scope["headers"]):
            cors = {
                "access-control-allow-methods": _ALLOW,
                "access-control-allow-headers": _CORS_REQUEST_HEADERS,
                "access-control-max-age": _CORS_MAX_AGE_SECONDS,
            }
        else:
            cors = {}
        return Response(status_code=_NO_CONTENT, headers={"allow": _ALLOW, **dict(policies.safety_headers()), **cors})

    def _cors(self, scope: Scope) -> tuple[tuple[str, str], ...]:
        origin = _origin(scope)
        # SECURITY: an explicit list, never a reflected origin, and no credentials: bearer tokens are the page's own to send.
        if origin is None or origin not in self._policy.cors_origins:
            return ()
        return (("access-control-allow-origin", origin), ("access-control-expose-headers", _CORS_RESPONSE_HEADERS))

    def reserve(self, tenant: str, size: int) -> None:
        """Take `size` bytes of the budget for bodies, and of the tenant's share of it.

        Raises:
            RefusalError: OVERLOADED.
        """
        policy = self._policy
        if self._buffered_bytes + size > policy.buffered_bytes or self._buffered_of[tenant] + size > policy.tenant_bytes:
            raise RefusalError(Reason.OVERLOADED, "Too many request bodies are being held; try again.")
        self._buffered_bytes += size
        self._buffered_of[tenant] += size

    def release(self, tenant: str, size: int) -> None:
        """Give `size` bytes back."""
        self._buffered_bytes -= size
        self._buffered_of[tenant] -= size
        if not self._buffered_of[tenant]:
            del self._buffered_of[tenant]


class _Buffer:
    """The body of one request, counted against the budget of all while it is held."""

    def __init__(self, budget: ExtensionsEndpoint, tenant: str) -> None:
        self._budget = budget
        self._tenant = tenant
        self._held = 0

    async def fill(self, receive: Receive) -> bytes:
        """Read the body; BodyLimitMiddleware bounds it in size and time."""
        parts: list[bytes] = []
        while True:
            message: Message = await receive()
            if message["type"] != "http.request":
                raise RefusalError(Reason.INVALID_REQUEST, "The connection ended before the body did.")
            part = message.get("body", b"")
            if part:
                self._budget.reserve(self._tenant, len(part))
                self._held += len(part)
                parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def release(self) -> None:
        self._budget.release(self._tenant, self._held)
        self._held = 0


async def _encoded(
    body: bytes, headers: list[tuple[str, str]], asked: Iterable[tuple[bytes, bytes]]
) -> tuple[bytes, list[tuple[str, str]]]:
    """Return body and headers, compressed where the caller takes that and it helps."""
    fields = dict(headers)
    if len(body) < compression.MIN_BYTES or not compression.is_compressible(fields["content-type"]):
        return body, headers
    headers = [(name, f"{value}, Accept-Encoding" if name == "vary" else value) for name, value in headers]
    # An entity tag of the guest names the guest's bytes, not ours.
    if "etag" in fields or not compression.accepts_gzip(asked):
        return body, headers
    return await compression.compressed(body), [*headers, ("content-encoding", "gzip")]


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refused(scope: Scope, refusal: RefusalError) -> Response:
    extra = dict(policies.safety_headers())
    execution_id = refusal.metadata.get("execution_id")
    if execution_id:
        extra[_EXECUTION_HEADER] = execution_id
    if refusal.reason is Reason.METHOD_NOT_ALLOWED:
        extra["allow"] = _ALLOW
    return problem_response(refusal, request_id=scope["request_id"], at_load=True, headers=extra)


def _pin(scope: Scope) -> str | None:
    values: list[str] = [value.decode("latin-1") for name, value in scope["headers"] if name == _PIN_HEADER]
    if not values:
        return None
    if len(values) > 1 or not is_content_hash(values[0]):
        raise RefusalError(Reason.INVALID_REQUEST, 'x-ext-content-hash must be "sha256:" and 64 lower-case hexadecimal digits.')
    return values[0]


def _origin(scope: Scope) -> str | None:
    values: list[str] = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
    return values[0] if len(values) == 1 else None
