"""uvicorn's HTTP parser with bounds on what a connection may take before the application sees anything of it.

Attacks this stops: half a header line and then silence (uvicorn has no read timeout); a header, a chunk extension or a trailer that
never ends (the parser collects it whole); trailers that are appended to the headers after those were checked; a refused upload that
goes on for ever; a proxy in front and this server reading one byte stream as different requests (the parser is strict about
Transfer-Encoding and Content-Length, and what it refuses ends the connection).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.problems import http_status, problem_document, problem_headers
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import new_id

MAX_HEAD_BYTES: Final = 32 * 1024
"""Request line and headers. Twice what an extension call may have, so that its own check answers first, in better words."""
MAX_HEADER_FIELDS: Final = 128
_LINGER_SECONDS = 5.0
_OVERHEAD_FLOOR_BYTES = 64 * 1024
_OVERHEAD_FACTOR = 8
"""Chunked framing may cost this many bytes for each byte of body: chunks of one byte cost six."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Bounds of a connection."""

    header_timeout_seconds: float
    """From connecting, or from the first byte of a further request, to the end of the headers."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. uvicorn makes it; see `bounded_protocol`."""

    limits: ClassVar[ConnectionLimits]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._in_body = False
        self._head_completed = False
        self._head_bytes = 0
        self._unparsed_head_bytes = 0
        self._raw_body_bytes = 0
        self._body_bytes = 0
        self._unanswered = 0
        self._refusal: RefusalError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows the parameter
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every timer."""
        self._stop(self._head_timer)
        self._stop(self._linger_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser and bound what it keeps without telling anybody."""
        if self._head_timer is None and not self._in_body:
            self._await_head()
        was_in_body = self._in_body
        if was_in_body:
            self._raw_body_bytes += len(data)
        self._head_completed = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_body:
            if self._raw_body_bytes - self._body_bytes > _OVERHEAD_FLOOR_BYTES + _OVERHEAD_FACTOR * self._body_bytes:
                self._give_up(RefusalError(Reason.HEADERS_TOO_LARGE, "The chunked framing or the trailers are too large."))
        # What ended a body is not the head of a request: the last piece of a large body may be longer than any head.
        elif not self._head_completed and not was_in_body:
            # What the parser holds of an unfinished line is in no callback yet.
            self._unparsed_head_bytes += len(data)
            if self._unparsed_head_bytes > 2 * MAX_HEAD_BYTES:
                self._give_up(_too_large())

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_body = False
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the request line."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer is dropped, for whoever reads headers has read them already."""
        self._count_head(len(name) + len(value))
        if not self._in_body:
            if len(self.headers) >= MAX_HEADER_FIELDS:
                self._refuse(_too_large())
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        version = self.parser.get_http_version()
        # RFC 9112 §3.2; and HTTP/0.9, which the parser still takes, has no headers at all.
        if version not in {"1.0", "1.1"} or hosts > 1 or (version == "1.1" and hosts == 0):
            self._refuse(RefusalError(Reason.INVALID_REQUEST, "Speak HTTP/1.1 with exactly one Host header."))
        self._stop(self._head_timer)
        self._head_timer = None
        self._head_completed = True
        self._unparsed_head_bytes = 0
        self._raw_body_bytes = 0
        self._body_bytes = 0
        super().on_headers_complete()
        self._unanswered += 1
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._in_body = False
        self._stop(self._linger_timer)
        self._linger_timer = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End a response; a request whose body is still coming gets a moment to notice, and then the connection ends."""
        self._unanswered -= 1
        if self._in_body and not self.transport.is_closing():
            # NOTE: closing at once would reset the connection, and the caller would never read why it was refused.
            self._linger_timer = self.loop.call_later(_LINGER_SECONDS, self._end)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words are for nobody.
        """Answer what cannot be parsed with a problem, and end the connection."""
        refusal = self._refusal or RefusalError(Reason.INVALID_REQUEST, "The request is not valid HTTP/1.1.")
        self._give_up(refusal)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: anybody may ask for an upgrade, as often as they like."""

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_too_large())

    def _refuse(self, refusal: RefusalError) -> None:
        """End parsing from within a callback of the parser, which turns any exception into its own error."""
        self._refusal = refusal
        raise refusal

    def _give_up(self, refusal: RefusalError) -> None:
        # A response that has begun is cut short, and earlier ones go first: nobody may take this for the answer to another request.
        if self._unanswered == 0 or (self._unanswered == 1 and not self.cycle.response_started):
            self.transport.write(_problem_bytes(refusal))
        self.transport.close()

    def _await_head(self) -> None:
        self._stop(self._head_timer)
        self._head_timer = self.loop.call_later(self.limits.header_timeout_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        # While a request is being answered, uvicorn's keep-alive time begins after it.
        if self._unanswered == 0:
            self._end()

    def _end(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def bounded_protocol(limits: ConnectionLimits) -> type[BoundedHttpProtocol]:
    """Return the protocol class for uvicorn's `http` setting."""
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), {"limits": limits})


def _too_large() -> RefusalError:
    return RefusalError(Reason.HEADERS_TOO_LARGE, f"Send at most {MAX_HEADER_FIELDS} headers and {MAX_HEAD_BYTES} bytes before the body.")


def _problem_bytes(refusal: RefusalError) -> bytes:
    request_id, status = new_id(), http_status(refusal)
    body = json.dumps(problem_document(refusal, request_id=request_id, status=status)).encode()
    headers = {**problem_headers(refusal), "x-request-id": request_id, "content-length": str(len(body)), "connection": "close"}
    head = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
    return STATUS_LINE[status] + head + b"\r\n" + body
