"""What may stand in a header, towards the guest and from it (DESIGN §7, CONTRACT §2).

The attack it stops: a line break in a value splits a message for whoever writes it to a socket; `set-cookie` of a guest sets a session
on the host's own origin; hop-by-hop fields speak to a proxy that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from registry.domain.headers import HOP_BY_HOP, MAX_HEADER_BYTES, MAX_HEADERS

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,256}\Z")
_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\U0010ffff]*\Z")
_OURS = "x-alga-"
_GENERATED = frozenset({"x-alga-tenant", "x-alga-extension"})
"""Made by the gateway from what it knows; the executor compares them with the request."""
_NEVER_TO_GUEST = HOP_BY_HOP | {"authorization", "cookie", "host", "content-length", "forwarded", "x-extrunner-subject-token"}
_NEVER_TO_GUEST_PREFIXES = ("proxy-", "x-forwarded-")
_NEVER_FROM_GUEST = HOP_BY_HOP | {"set-cookie", "set-cookie2"}


class HeaderError(ValueError):
    """A header is not acceptable; the text says why."""


def check_header_sizes(headers: Sequence[tuple[str, str]]) -> None:
    """Check number and size.

    Raises:
        HeaderError: too many, or too large together.
    """
    if len(headers) > MAX_HEADERS:
        message = f"there are more than {MAX_HEADERS} headers"
        raise HeaderError(message)
    if sum(len(name.encode()) + len(value.encode()) for name, value in headers) > MAX_HEADER_BYTES:
        message = f"headers are larger than {MAX_HEADER_BYTES} bytes together"
        raise HeaderError(message)


def check_header(name: str, value: str) -> None:
    """Check the grammar of one header (RFC 9110 token in lower case; no control characters in the value).

    Raises:
        HeaderError: it is not acceptable.
    """
    if _NAME.match(name) is None:
        message = f"{name[:64]!r} is not a lower-case field name"
        raise HeaderError(message)
    if _VALUE.match(value) is None or value != value.strip(" \t"):
        message = f"the value of {name!r} holds control characters or spaces around it"
        raise HeaderError(message)


def check_request_header(name: str, value: str) -> None:
    """Check one header that a caller sends to the guest.

    Raises:
        HeaderError: grammar, a hop-by-hop field, a credential, what proxies say, or a name that is ours to generate.
    """
    check_header(name, value)
    # SECURITY: a credential of whoever calls must not reach foreign code because an internal service passed its headers on.
    if name in _NEVER_TO_GUEST or name.startswith(_NEVER_TO_GUEST_PREFIXES) or (name.startswith(_OURS) and name not in _GENERATED):
        message = f"{name!r} is not passed to extensions; leave it out"
        raise HeaderError(message)


def filter_response_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Drop what a guest may not send, for every caller: cookies, hop-by-hop fields and `x-alga-*`."""
    return tuple((name, value) for name, value in headers if name not in _NEVER_FROM_GUEST and not name.startswith(_OURS))
