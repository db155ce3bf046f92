"""Checks a guest's answer before anybody believes it.

The attack it stops: response splitting and header smuggling by a guest, a cookie set on the host's origin, forged `x-alga-*` headers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.domain.headers import HOP_BY_HOP, MAX_HEADER_BYTES, MAX_HEADERS
from runnerd.engine.outcomes import Completed, GuestError, LimitExceeded, LimitKind

MIN_STATUS, MAX_STATUS = 200, 599
WITHOUT_BODY = frozenset({204, 304})
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*\Z")
"""RFC 9110 §5.5: visible characters, blanks and tabs; no control characters."""
DROPPED = HOP_BY_HOP | {"set-cookie", "set-cookie2", "content-length"}
"""The length is computed by the server in front."""
DROPPED_PREFIX = "x-alga-"


@dataclass(frozen=True, slots=True)
class GuestAnswer:
    """An execute-response, whichever path it came by."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | None


def check_answer(answer: GuestAnswer, *, response_bytes: int) -> Completed | GuestError | LimitExceeded:
    """Turn an execute-response into an outcome.

    Args:
        answer: as the guest gave it.
        response_bytes: allowed in the body.
    """
    status, body = answer.status, answer.body
    if not MIN_STATUS <= status <= MAX_STATUS:
        return GuestError(message=f"the status is {status}; it must be {MIN_STATUS} to {MAX_STATUS}")
    if body is not None and len(body) > response_bytes:
        return LimitExceeded(limit=LimitKind.RESPONSE_SIZE, used=len(body), allowed=response_bytes)
    if body and status in WITHOUT_BODY:
        return GuestError(message=f"a response of status {status} has no body")
    checked = check_headers(answer.headers)
    if not isinstance(checked, tuple):
        return checked
    return Completed(status=status, headers=checked, body=None if status in WITHOUT_BODY else body)


def check_headers(headers: list[tuple[str, str]]) -> tuple[tuple[str, str], ...] | GuestError | LimitExceeded:
    """Check, lower and filter header fields; duplicates stay in order."""
    if len(headers) > MAX_HEADERS:
        return LimitExceeded(limit=LimitKind.HEADERS, used=len(headers), allowed=MAX_HEADERS)
    size = sum(len(name.encode()) + len(value.encode()) for name, value in headers)
    if size > MAX_HEADER_BYTES:
        return LimitExceeded(limit=LimitKind.HEADERS, used=size, allowed=MAX_HEADER_BYTES)
    kept: list[tuple[str, str]] = []
    for name, value in headers:
        if not _TOKEN.match(name):
            return GuestError(message=f"a header name is not a token: {name[:64]!r}")
        if not _VALUE.match(value):
            return GuestError(message=f"the value of header {name[:64]!r} has control characters")
        lowered = name.lower()
        if lowered not in DROPPED and not lowered.startswith(DROPPED_PREFIX):
            kept.append((lowered, value.strip(" \t")))
    return tuple(kept)
