"""What may pass between a caller and an extension: paths, request headers, response headers. Pure functions, no I/O.

Attacks this stops: a second spelling of a path that a role check does not know (T5); credentials, cookies and forged platform
headers reaching a guest; cookies, open redirects, shared caching and active content coming back from one (T14); header splitting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from registry.domain.errors import Reason, RefusalError
from registry.domain.headers import HOP_BY_HOP, MAX_HEADER_BYTES, MAX_HEADERS
from registry.domain.ids import is_extension_name, is_uuid
from registry.domain.paths import PathError, check_normal_form

Headers = tuple[tuple[str, str], ...]

EXTENSION_PREFIX: Final = b"/api/ext/"
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

MAX_PATH_BYTES: Final = 4 * 1024
MAX_QUERY_BYTES: Final = 8 * 1024

_TO_GUEST = frozenset(
    {
        "accept",
        "accept-language",
        "content-type",
        "content-encoding",
        "user-agent",
        "if-match",
        "if-none-match",
        "x-idempotency-key",
    }
)
"""CONTRACT §2. `accept-encoding` is not among them: the gateway compresses, a guest's compressed bytes would arrive as gibberish."""

_NEVER_TO_GUEST = HOP_BY_HOP | {"authorization", "cookie", "forwarded", "x-extrunner-subject-token", "host", "content-length", "expect"}
_NEVER_TO_GUEST_PREFIXES = ("proxy-", "x-forwarded-", "x-alga-")

_FROM_GUEST = frozenset({"content-language", "etag", "last-modified", "retry-after"})
_NEVER_FROM_GUEST = HOP_BY_HOP | {"set-cookie", "set-cookie2"}
_GATEWAY_SETS = frozenset({"x-request-id", "x-ext-execution-id", "x-ext-content-hash", "x-ext-version-id"})

_SAFE_TYPES = frozenset({"application/json", "text/plain", "text/csv", "application/pdf", "application/octet-stream"})
_SAFE_TYPE_TREES = ("image/", "audio/", "video/")
_DEFAULT_TYPE = "application/octet-stream"
_KEPT_CACHE_DIRECTIVE = re.compile(r"no-cache|must-revalidate|immutable|max-age=[0-9]{1,9}\Z")

_SAFETY: Headers = (
    ("x-content-type-options", "nosniff"),
    ("content-security-policy", "sandbox; default-src 'none'; frame-ancestors 'none'"),
    ("cross-origin-resource-policy", "same-origin"),
)

_ENCODED_SEPARATOR = re.compile(r"%(?:2e|2f|5c)", re.IGNORECASE)
"""Browsers take "%2e" for a dot in a dot segment; some servers take the others for slashes."""
_QUERY = re.compile(rb"[\x21\x22\x24-\x7e]*\Z")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]*\Z")
_MEDIA_TYPE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(;[\x20-\x7e\t]*)?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionAddress:
    """Where a request goes: which extension, and which path within it, still encoded and in normal form."""

    extension_id: str
    path: str


def parse_address(raw_path: bytes) -> ExtensionAddress:
    """Split the raw path of a request under `/api/ext/`.

    Guarantee: the path begins with "/" and has one spelling: no empty segment but a last one (whether a trailing slash is declared
    is the runner's decision), no dot segment, no encoded slash, backslash, control or unreserved character.

    Raises:
        RefusalError: INVALID_REQUEST; the path is refused, never rewritten.
    """
    # SECURITY: the raw path and not the decoded one that routed here; "%2e%2e" and "%2F" are gone from that one.
    if not raw_path.startswith(EXTENSION_PREFIX):
        raise RefusalError(Reason.INVALID_REQUEST, "Spell the prefix /api/ext/ plainly, without escapes.")
    if len(raw_path) > MAX_PATH_BYTES:
        raise RefusalError(Reason.INVALID_REQUEST, f"The path is longer than {MAX_PATH_BYTES} bytes.")
    identifier, slash, rest = raw_path[len(EXTENSION_PREFIX) :].partition(b"/")
    extension_id = identifier.decode("ascii", "replace")
    if not (is_extension_name(extension_id) or is_uuid(extension_id)):
        raise RefusalError(Reason.INVALID_REQUEST, "Name the extension by its reverse-domain name or its id.")
    path = slash + rest if slash else b"/"
    # Latin-1 keeps each byte a character; those that are not ASCII are no part of a path.
    text = path.decode("latin-1")
    try:
        check_normal_form(text)
    except PathError as error:
        raise RefusalError(Reason.INVALID_REQUEST, f"Send the path in normal form: {error}.") from error
    return ExtensionAddress(extension_id=extension_id, path=text)


def parse_query(raw_query: bytes) -> str:
    """Return the raw query, which is passed on as it is.

    Raises:
        RefusalError: INVALID_REQUEST; it is too long or holds a character that must be encoded.
    """
    if len(raw_query) > MAX_QUERY_BYTES or _QUERY.match(raw_query) is None:
        raise RefusalError(Reason.INVALID_REQUEST, f"The query is longer than {MAX_QUERY_BYTES} bytes or not percent-encoded.")
    return raw_query.decode("ascii")


def check_header_size(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse more headers than an extension call may have (DESIGN §7).

    Raises:
        RefusalError: HEADERS_TOO_LARGE.
    """
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise RefusalError(Reason.HEADERS_TOO_LARGE, f"Send at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes in all.")


def request_headers(
    headers: Iterable[tuple[bytes, bytes]],
    *,
    request_id: str,
    tenant_id: str,
    extension_id: str,
    declared: frozenset[str] = frozenset(),
) -> Headers:
    """Return the headers that go to the guest: those of the allow-list in their order, duplicates kept, then the generated ones.

    Args:
        headers: as received, names in lower case.
        request_id: goes as `x-request-id`.
        tenant_id: goes as `x-alga-tenant`.
        extension_id: goes as `x-alga-extension`.
        declared: further names that the endpoint asks for (`request_headers[]`); what may never pass does not pass by declaration.
    """
    allowed = _TO_GUEST | {name for name in declared if is_forwardable_request_header(name)}
    passed = [
        (name, _text(value))
        for name, value in ((raw_name.decode("latin-1"), raw_value) for raw_name, raw_value in headers)
        if name in allowed
    ]
    return (*passed, ("x-request-id", request_id), ("x-alga-tenant", tenant_id), ("x-alga-extension", extension_id))


def _text(value: bytes) -> str:
    """Read a field value: UTF-8 as everybody sends it now, or else the Latin-1 of old."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def is_forwardable_request_header(name: str) -> bool:
    """Tell whether an endpoint may ask for the request header `name` (lower case)."""
    return name not in _NEVER_TO_GUEST and name != "x-request-id" and not name.startswith(_NEVER_TO_GUEST_PREFIXES)


def response_headers(headers: Headers, *, request_path: str, own_origin: str | None, declared: frozenset[str] = frozenset()) -> Headers:
    """Return the headers that go to the caller: the guest's, narrowed to the allow-list, and those that make any content harmless.

    Args:
        headers: the guest's.
        request_path: the raw path of the request, as `parse_address` accepted it; a `location` must stay within its extension.
        own_origin: origin that a `location` may name besides being relative.
        declared: further names of the endpoint (`response_headers[]`).

    Raises:
        RefusalError: GUEST_INVALID_RESPONSE; a header that would pass has an invalid value.
    """
    guest: list[tuple[str, str]] = [(name.lower(), value.strip(" \t")) for name, value in headers]
    first: dict[str, str] = {}
    for name, value in guest:
        first.setdefault(name, value)
    passed = [(name, value) for name, value in first.items() if name in _FROM_GUEST]
    passed += [(name, value) for name, value in guest if _is_extra_response_header(name, declared)]
    if (location := first.get("location")) is not None and _is_safe_location(location, request_path, own_origin):
        passed.append(("location", location))
    media_type = _media_type(first.get("content-type"))
    passed.append(("content-type", media_type))
    disposition = _disposition(media_type, first.get("content-disposition"))
    if disposition is not None:
        passed.append(("content-disposition", disposition))
    passed.append(("cache-control", _cache_control([value for name, value in guest if name == "cache-control"])))
    passed.append(("vary", _vary([value for name, value in guest if name == "vary"])))
    for name, value in passed:
        if _TOKEN.match(name) is None or _FIELD_VALUE.match(value) is None:
            raise RefusalError(Reason.GUEST_INVALID_RESPONSE, f"The extension sent an invalid {name[:64]!r} header.")
    return (*passed, *_SAFETY)


def safety_headers() -> Headers:
    """Return the headers of an answer under `/api/ext` that is not the guest's."""
    return (*_SAFETY, ("cache-control", "no-store"), ("vary", "Authorization, Origin"))


def _is_extra_response_header(name: str, declared: frozenset[str]) -> bool:
    # SECURITY: what the gateway sets and what never passes come before any declaration.
    if name in _NEVER_FROM_GUEST or name in _GATEWAY_SETS or name.startswith(("proxy-", "x-alga-", "access-control-")):
        return False
    handled = name in _FROM_GUEST or name in {"location", "content-type", "content-disposition", "content-encoding", "content-length"}
    if handled or name in {"cache-control", "vary"} or any(name == safety for safety, _ in _SAFETY):
        return False
    return name.startswith("x-ext-") or name in declared


def _is_safe_location(location: str, request_path: str, own_origin: str | None) -> bool:
    # SECURITY: browsers drop tabs and newlines and read "\" as "/", so "/\evil.example" is another origin.
    if not location or "\\" in location or any(not "!" <= character <= "~" for character in location):
        return False
    try:
        parts = urlsplit(location)
    except ValueError:
        return False
    if parts.scheme or parts.netloc:
        if own_origin is None or f"{parts.scheme}://{parts.netloc}".lower() != own_origin.lower():
            return False
    elif location.startswith("//") or ":" in location.split("/", 1)[0].split("?", 1)[0]:
        return False
    return _stays_within_extension(parts.path or ("/" if parts.netloc else ""), request_path)


def _stays_within_extension(path: str, request_path: str) -> bool:
    """Tell whether a redirect from `request_path` to `path` leads back to the extension that answers it."""
    # SECURITY: whoever follows a redirect within an origin sends the bearer token along, and after 307 method and body too. A guest must
    # not be able to turn a call of itself into one of another extension or of the admin REST, by its user's authority.
    if _ENCODED_SEPARATOR.search(path) is not None or "//" in path:
        return False
    resolved: list[str] = []
    for segment in (path if path.startswith("/") else f"{request_path.rpartition('/')[0]}/{path}").split("/")[1:]:
        if segment == "..":
            del resolved[-1:]
        elif segment != ".":
            resolved.append(segment)
    return not path or resolved[:3] == request_path.split("/")[1:4]


def _media_type(value: str | None) -> str:
    return _DEFAULT_TYPE if value is None or _MEDIA_TYPE.match(value) is None else value


def is_passive(media_type: str) -> bool:
    """Tell whether a browser shows content of this type without running anything of it."""
    essence = media_type.split(";", 1)[0].strip().lower()
    if essence.startswith("image/svg"):
        return False
    return (
        essence in _SAFE_TYPES or essence.startswith(_SAFE_TYPE_TREES) or (essence.startswith("application/") and essence.endswith("+json"))
    )


def _disposition(media_type: str, guest: str | None) -> str | None:
    if is_passive(media_type):
        return guest
    # T14: whatever may run, HTML, SVG, XML, scripts, style sheets, unknown types, is something to save and not to show.
    kind = "" if guest is None else guest.split(";", 1)[0].strip().lower()
    return guest if kind == "attachment" else "attachment"


def _cache_control(values: Sequence[str]) -> str:
    directives = [directive.strip().lower() for value in values for directive in value.split(",")]
    if "private" not in directives or {"no-store", "public"} & set(directives):
        return "no-store"
    return ", ".join(["private", *dict.fromkeys(directive for directive in directives if _KEPT_CACHE_DIRECTIVE.fullmatch(directive))])


def _vary(values: Sequence[str]) -> str:
    names = [name.strip() for value in values for name in value.split(",")]
    kept = {name.lower(): name for name in names[:16] if name == "*" or _TOKEN.match(name)}
    kept.pop("authorization", None)
    kept.pop("origin", None)
    return ", ".join(["Authorization", "Origin", *kept.values()])
