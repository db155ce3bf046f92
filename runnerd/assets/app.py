"""The ASGI application of the file server: `GET|HEAD /ext-ui/{extension_id}/{content_hash}/{path}` and nothing else.

It decides what an answer is; where files and indexes come from is `lookup`'s and `content`'s, what headers say is `headers`'.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from registry.domain.errors import Reason, RefusalError
from runnerd.assets import headers
from runnerd.assets.content import OpenFiles
from runnerd.assets.headers import Header
from runnerd.assets.index import FileFacts, Index
from runnerd.assets.lookup import Lookup
from runnerd.assets.paths import AssetPath, parse
from runnerd.children.budget import Budget

ANSWER_TIMEOUT_SECONDS = 15.0
"""Until the first byte of an answer is ready; sending has its own bound (`protocol.STALL_SECONDS`)."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

_PLAIN_QUERY = re.compile(rb"[\x21-\x7e]+\Z")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    raw_path: bytes
    query: bytes
    headers: dict[bytes, bytes]

    @classmethod
    def of(cls, scope: Scope) -> _Request:
        fields: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            fields[name] = fields[name] + b"," + value if name in fields else value
        return cls(method=scope["method"], raw_path=scope["raw_path"], query=scope["query_string"], headers=fields)

    @property
    def has_body(self) -> bool:
        return self.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.headers

    @property
    def accepts_pages(self) -> bool:
        return b"text/html" in self.headers.get(b"accept", b"").lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    headers: list[Header]
    first: bytes = b""
    rest: Iterator[bytes] | None = None
    length: int | None = None
    facts: FileFacts | None = None
    asset: AssetPath | None = None


class AssetsApp:
    """Serves the files of interfaces.

    Args:
        lookup: which interfaces are served now.
        files: what is open.
        frame_ancestors: value of the CSP directive (see `headers.frame_ancestors`).
        report_corrupt: told of every file that is not what was verified.
    """

    def __init__(self, *, lookup: Lookup, files: OpenFiles, frame_ancestors: str, report_corrupt: Callable[[AssetPath], None]) -> None:
        self._lookup = lookup
        self._files = files
        self._ancestors = frame_ancestors
        self._report_corrupt = report_corrupt
        self._log_budget = Budget(per_second=1, burst=10)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Never raises for what a request holds."""
        del receive  # No request has a body that is read.
        request = _Request.of(scope)
        answer = await self._answer(request)
        fields = [*answer.headers, (b"date", formatdate(usegmt=True).encode())]
        if answer.length is not None:
            fields.append((b"content-length", str(answer.length).encode()))
        if request.has_body:
            fields.append((b"connection", b"close"))  # What follows is not a request and is not read.
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        if request.method == "HEAD" or answer.rest is None:
            await send({"type": "http.response.body", "body": answer.first})
            return
        await self._stream(answer, answer.rest, scope, send)

    async def _stream(self, answer: _Answer, rest: Iterator[bytes], scope: Scope, send: Send) -> None:
        transport = scope["state"]["transport"]
        await send({"type": "http.response.body", "body": answer.first, "more_body": True})
        try:
            for chunk in rest:
                if transport.is_closing():
                    return
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await asyncio.sleep(0)  # A fast reader must not keep others waiting.
        except RefusalError:
            # SECURITY: the status is sent already, so the connection ends short of Content-Length and the client sees a failure.
            self._corrupt(answer)
            transport.abort()
            return
        await send({"type": "http.response.body", "body": b""})

    async def _answer(self, request: _Request) -> _Answer:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                return await self._file_or_refusal(request)
        except RefusalError as refusal:
            return self._problem(refusal)
        except TimeoutError:
            return self._problem(RefusalError(Reason.OVERLOADED, "The file server took too long; try again in a second."))
        except Exception:  # noqa: BLE001 - whatever fails is one 500, its text only in the log
            if self._log_budget.take():
                _log.exception("unexpected failure")
            return self._problem(RefusalError(Reason.INTERNAL, "The file server failed; try again in a moment."))

    async def _file_or_refusal(self, request: _Request) -> _Answer:
        asset = parse(request.raw_path)
        if request.method not in {"GET", "HEAD"}:
            raise RefusalError(Reason.METHOD_NOT_ALLOWED, "Use GET or HEAD.")
        if request.has_body:
            raise RefusalError(Reason.INVALID_REQUEST, "Send the request without a body.")
        if b"service-worker" in request.headers:
            # SECURITY: a service worker would outlive the page, its frame and a revocation.
            raise RefusalError(Reason.INVALID_REQUEST, "Service workers are not available to extensions.")
        index = await self._lookup.find(asset)
        if not asset.path and index.entry is not None and "/" in index.entry:
            return self._redirect(index.entry, request.query)
        path, is_fallback = _choose(asset, index, accepts_pages=request.accepts_pages)
        return await self._file(request, asset, index, path, is_fallback=is_fallback)

    async def _file(self, request: _Request, asset: AssetPath, index: Index, path: str, *, is_fallback: bool) -> _Answer:
        facts = index.files[path]
        etag = headers.etag_of(facts.sha256)
        fields = headers.for_file(kind=headers.content_type(path), etag=etag, ancestors=self._ancestors)
        if is_fallback:
            fields.append((b"vary", b"Accept"))
        if headers.is_match(request.headers.get(b"if-none-match", b""), etag):
            return _Answer(status=304, headers=fields)
        try:
            file = await self._files.get(facts, lambda: self._lookup.open(asset, path))
            rest = file.chunks()
            first = next(rest, b"")
        except RefusalError as refusal:
            if refusal.reason is Reason.BUNDLE_CORRUPT:
                self._corrupt(_Answer(status=502, headers=[], facts=facts, asset=asset))
            raise
        return _Answer(status=200, headers=fields, first=first, rest=rest, length=facts.size, facts=facts, asset=asset)

    def _corrupt(self, answer: _Answer) -> None:
        if answer.facts is not None and answer.asset is not None:
            self._files.forget(answer.facts)
            self._report_corrupt(answer.asset)

    def _redirect(self, entry: str, query: bytes) -> _Answer:
        # SECURITY: a query comes from whoever made the link; only what cannot end a header goes back.
        location = quote(entry, safe="/").encode() + (b"?" + query if _PLAIN_QUERY.match(query) else b"")
        fields = [field for field in headers.for_problem(ancestors=self._ancestors) if field[0] != b"content-type"]
        return _Answer(status=307, headers=[*fields, (b"location", location)], length=0)

    def _problem(self, refusal: RefusalError) -> _Answer:
        row = refusal.row
        fields = headers.for_problem(ancestors=self._ancestors)
        status = row.http_status
        if refusal.reason is Reason.HASH_DENIED:
            # What was revoked is gone for good, and browsers should forget what they kept of it (T37).
            status = 410
            fields.append((b"clear-site-data", b'"cache"'))
        if refusal.reason is Reason.METHOD_NOT_ALLOWED:
            fields.append((b"allow", b"GET, HEAD"))
        if refusal.retry_after_seconds is not None:
            fields.append((b"retry-after", str(refusal.retry_after_seconds).encode()))
        body = problem_body(refusal, status=status)
        return _Answer(status=status, headers=fields, first=body, length=len(body))


def problem_body(refusal: RefusalError, *, status: int) -> bytes:
    """Return the problem+json document (RFC 9457) of a refusal."""
    document = {
        "type": "about:blank",
        "title": refusal.row.title,
        "status": status,
        "detail": refusal.public_detail,
        "reason": refusal.reason.value,
    }
    return json.dumps(document).encode()


def _choose(asset: AssetPath, index: Index, *, accepts_pages: bool) -> tuple[str, bool]:
    """Return the path of the file to serve, and whether it stands in for a client-side route.

    Raises:
        RefusalError: ASSET_NOT_FOUND.
    """
    if asset.path in index.files:
        return asset.path, False
    # Only a navigation falls back to the page: a script or picture that is missing must be seen to be missing.
    is_navigation = not asset.path or (accepts_pages and asset.may_be_route)
    if is_navigation and index.entry is not None and index.entry in index.files:
        return index.entry, bool(asset.path)
    raise RefusalError(Reason.ASSET_NOT_FOUND, "The interface has no such file; check the path.")
