"""What every answer says about itself: content type, sandbox, cache and sharing headers. Pure functions and tables.

Attacks these stop: an interface page opened directly (a link, a window of another site) must not run in an origin that all extensions
share (T15: `sandbox` makes the origin opaque however it is opened); a page must not load or send anywhere but to its own files (T25);
a revoked page must not live on in caches for a year (T37: navigations are revalidated).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from registry.domain.errors import Reason, RefusalError

Header = tuple[bytes, bytes]

CONTENT_TYPES: dict[str, str] = {
    "avif": "image/avif",
    "bmp": "image/bmp",
    "cjs": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "gif": "image/gif",
    "htm": "text/html; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json; charset=utf-8",
    "m4a": "audio/mp4",
    "map": "application/json; charset=utf-8",
    "md": "text/markdown; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "ogg": "audio/ogg",
    "otf": "font/otf",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml; charset=utf-8",
    "ttf": "font/ttf",
    "txt": "text/plain; charset=utf-8",
    "wasm": "application/wasm",
    "wav": "audio/wav",
    "webm": "video/webm",
    "webmanifest": "application/manifest+json; charset=utf-8",
    "webp": "image/webp",
    "woff": "font/woff",
    "woff2": "font/woff2",
    "xht": "application/xhtml+xml; charset=utf-8",
    "xhtml": "application/xhtml+xml; charset=utf-8",
    "xml": "application/xml; charset=utf-8",
    "xsl": "application/xml; charset=utf-8",
}
"""By lower-case file extension. Fixed: the machine's own table must not decide what a browser executes."""
UNKNOWN_TYPE = "application/octet-stream"

_DOCUMENT_TYPES = frozenset({"text/html", "application/xhtml+xml", "image/svg+xml", "application/xml", "application/pdf"})
"""What a browser shows as a document of its own that may run scripts."""
_NAVIGATION_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_DOCUMENT_POLICY = (
    "sandbox allow-scripts allow-forms; default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; media-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; webrtc 'block'; frame-ancestors "
)
_OTHER_POLICY = "sandbox; default-src 'none'; frame-ancestors "
_PERMISSIONS = ", ".join(
    f"{feature}=()"
    for feature in (
        "accelerometer",
        "autoplay",
        "bluetooth",
        "browsing-topics",
        "camera",
        "display-capture",
        "geolocation",
        "gyroscope",
        "hid",
        "identity-credentials-get",
        "idle-detection",
        "local-fonts",
        "magnetometer",
        "microphone",
        "midi",
        "payment",
        "publickey-credentials-get",
        "screen-wake-lock",
        "serial",
        "usb",
        "web-share",
        "xr-spatial-tracking",
    )
).encode()
_ALWAYS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", _PERMISSIONS),
    (b"x-dns-prefetch-control", b"off"),
    # A sandboxed frame has an opaque origin: its own scripts, modules and fonts are cross-origin to it, so they must be shareable.
    (b"access-control-allow-origin", b"*"),
    (b"cross-origin-resource-policy", b"cross-origin"),
    # NOTE: no Cross-Origin-Opener-Policy. Browsers answer a sandboxed top-level document that sends one with a network error.
    (b"accept-ranges", b"none"),
)
_IMMUTABLE = b"public, max-age=31536000, immutable"
_ORIGIN = re.compile(r"https?://(?:\[[0-9a-f:]+\]|(?:\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?)(?::[0-9]{1,5})?\Z")
MAX_FRAME_ANCESTORS = 32


def frame_ancestors(origins: Iterable[str]) -> str:
    """Return the value of `frame-ancestors` for these origins; without any, nobody may embed.

    Raises:
        RefusalError: INVALID_REQUEST where one is not an origin such as `https://host.example` or `https://*.example:8443`.
    """
    listed = list(origins)
    wrong = [origin for origin in listed if not _ORIGIN.match(origin)]
    if wrong or len(listed) > MAX_FRAME_ANCESTORS:
        detail = f"Frame ancestors must be at most {MAX_FRAME_ANCESTORS} origins (scheme, host, optional port), in lower case."
        raise RefusalError(Reason.INVALID_REQUEST, detail, metadata={"origins": ", ".join(wrong)[:200]})
    return " ".join(listed) or "'none'"


def content_type(path: str) -> str:
    """Return the content type of a file by its extension, with a charset where it is text."""
    _, dot, extension = path.rpartition("/")[2].rpartition(".")
    return CONTENT_TYPES.get(extension.lower(), UNKNOWN_TYPE) if dot else UNKNOWN_TYPE


def is_navigation(kind: str) -> bool:
    """Tell whether `kind` is a page, which caches must revalidate."""
    return kind.partition(";")[0] in _NAVIGATION_TYPES


def for_file(*, kind: str, etag: bytes, ancestors: str) -> list[Header]:
    """Return the headers of a 200 and of a 304 for a file of content type `kind`. The caller adds Content-Length."""
    return [
        (b"content-type", kind.encode()),
        (b"etag", etag),
        (b"cache-control", b"no-cache" if is_navigation(kind) else _IMMUTABLE),
        *_guards(kind, ancestors),
    ]


def for_problem(*, ancestors: str) -> list[Header]:
    """Return the headers of every answer that is not a file."""
    return [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store"), *_guards("", ancestors)]


def _guards(kind: str, ancestors: str) -> list[Header]:
    policy = _DOCUMENT_POLICY if kind.partition(";")[0] in _DOCUMENT_TYPES else _OTHER_POLICY
    return [(b"content-security-policy", (policy + ancestors).encode()), *_ALWAYS]


def etag_of(digest: str) -> bytes:
    """Return the strong entity tag of a file by its SHA-256 in hexadecimal."""
    return f'"sha256-{digest}"'.encode()


def is_match(if_none_match: bytes, etag: bytes) -> bool:
    """Tell whether an If-None-Match header covers `etag` (RFC 9110 §13.1.2: weak comparison, `*` covers all)."""
    candidates = [candidate.strip() for candidate in if_none_match.split(b",")]
    return b"*" in candidates or etag in {candidate.removeprefix(b"W/") for candidate in candidates}
