"""The one HTTP client of the host platform: a request with bounds on everything, an answer that is bytes and a status, or a failure.

Attacks it stops: a platform (or somebody in its place) that never ends an answer, sends it byte by byte, packs it so that it unfolds, or
leads the request elsewhere with our token; a header field with a line break in it; library logs that write tokens and addresses down.

    PlatformError           no answer that can be used; whether the platform acted is not known
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx

from registry.domain.ids import InstallId
from runnerd.capabilities.platform.connections import PlatformConnections

_FIELD = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?\Z")
_NOT_FINAL: Final = frozenset({408, 409, 425, 429})
"""Too slow, at work on it, too early, too many: the same request may still be, or become, another's success."""
_FREE_CHUNKS: Final = 1_024
_LEAST_CHUNK_BYTES: Final = 512
"""Of those beyond the free ones, on average. Each chunk costs the daemon's loop some microseconds, however small it is."""


class PlatformError(Exception):
    """The platform gave no usable answer. The text is for the log: it holds nothing that came from guest, user or platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformRequest:
    """One request, ready to be sent as it is."""

    install_id: InstallId
    """Whose connections carry it."""
    method: str
    target: str
    """Path and query as they go on the wire; absolute."""
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    most_answer_bytes: int
    deadline: float
    """Of the invocation, on the clock of `time.monotonic()`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformAnswer:
    """A whole answer of any status."""

    status: int
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether the platform did what it was asked to."""
        return 200 <= self.status < 300  # noqa: PLR2004 - HTTP's own

    @property
    def is_client_error(self) -> bool:
        """Whether the platform found fault with the request."""
        return 400 <= self.status < 500  # noqa: PLR2004 - HTTP's own

    @property
    def is_final(self) -> bool:
        """Whether the platform is done with a write: it made it, or it never will."""
        return self.is_success or (self.is_client_error and self.status not in _NOT_FINAL)


class PlatformClient:
    """Sends requests to one origin.

    Args:
        base_url: scheme, host and, where there is one, port and path, without a slash at the end; checked by the settings.
        connections: of the daemon.
        connect_seconds: until a connection stands.
        call_seconds: of a request in all, waiting for a place included.
    """

    def __init__(self, base_url: str, connections: PlatformConnections, *, connect_seconds: float, call_seconds: float) -> None:
        parts = urlsplit(base_url)
        self._origin = f"{parts.scheme}://{parts.netloc}/"
        self._prefix = parts.path
        self._connections = connections
        self._connect_seconds = connect_seconds
        self._call_seconds = call_seconds
        for name in ("httpx", "httpcore"):
            # SECURITY: at DEBUG they write header fields, at INFO addresses with what guests put into them.
            logging.getLogger(name).setLevel(logging.WARNING)

    async def send(self, request: PlatformRequest) -> PlatformAnswer:
        """Send a request and read its answer. Nothing is sent twice and no redirect is followed.

        Raises:
            PlatformError: no whole answer came in time, or it breaks a bound.
        """
        seconds = min(self._call_seconds, request.deadline - time.monotonic())
        try:
            async with asyncio.timeout(max(0.0, seconds)), self._connections.transport_for(request.install_id) as transport:
                return await self._exchange(transport, request)
        except TimeoutError as error:
            message = "no whole answer in time"
            raise PlatformError(message) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            # The texts of these may repeat what the platform sent.
            message = f"no whole answer ({type(error).__name__})"
            raise PlatformError(message) from error

    async def _exchange(self, transport: httpx.AsyncHTTPTransport, request: PlatformRequest) -> PlatformAnswer:
        timeouts = {"connect": self._connect_seconds, "read": None, "write": None, "pool": None}
        message = httpx.Request(
            request.method,
            self._origin,
            headers=[(name.encode("ascii"), value.encode("ascii")) for name, value in _checked(request.headers)],
            content=request.body,
            # SECURITY: the exact bytes that were checked; a URL object would rewrite some of them.
            extensions={"target": (self._prefix + request.target).encode("ascii"), "timeout": timeouts},
        )
        response = await transport.handle_async_request(message)
        try:
            return PlatformAnswer(status=response.status_code, body=await _read(response, request.most_answer_bytes))
        finally:
            await response.aclose()


def _checked(headers: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    for name, value in headers:
        if not is_field_value(value):
            message = f"{name} cannot be sent: not a header value of visible ASCII characters"
            raise PlatformError(message)
        yield name, value


def is_field_value(value: str) -> bool:
    """Tell whether `value` can be sent as a header field: visible ASCII characters, and blanks between them."""
    return _FIELD.match(value) is not None


async def _read(response: httpx.Response, most: int) -> bytes:
    """Read a body as it is on the wire, up to `most` bytes."""
    # SECURITY: what is packed may unfold to any size; we ask for none, and take none.
    if response.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        message = "the answer is encoded, which was not asked for"
        raise PlatformError(message)
    length = response.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most:
        message = f"the answer has more than {most} bytes"
        raise PlatformError(message)
    body = bytearray()
    chunks = 0
    async for chunk in response.aiter_raw():
        chunks += 1
        body += chunk
        if len(body) > most:
            message = f"the answer has more than {most} bytes"
            raise PlatformError(message)
        if chunks > _FREE_CHUNKS + len(body) // _LEAST_CHUNK_BYTES:
            message = "the answer comes in too many pieces"
            raise PlatformError(message)
    return bytes(body)
