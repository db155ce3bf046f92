"""Compresses what extensions answer. Guests are never asked to: `accept-encoding` is not passed to them (N19).

What BREACH needs, a victim's browser that sends credentials with an attacker's requests, is not given here: bearer tokens are attached
by the calling page itself, never by the browser.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterable
from typing import Final

MIN_BYTES: Final = 1024
"""Below, headers and CPU cost more than is saved."""
_IN_THREAD_BYTES: Final = 64 * 1024
"""Above, compressing takes over a millisecond, which other requests would wait for."""
_LEVEL: Final = 4
_COMPRESSIBLE: Final = frozenset({"application/json", "application/xml", "application/javascript", "image/svg+xml"})


def is_compressible(media_type: str) -> bool:
    """Tell whether content of this type usually shrinks."""
    essence = media_type.split(";", 1)[0].strip().lower()
    return essence.startswith("text/") or essence in _COMPRESSIBLE or essence.endswith(("+json", "+xml"))


def accepts_gzip(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Tell whether the caller takes gzip (RFC 9110 §12.5.3); "*" alone is not taken for it."""
    for name, value in headers:
        if name != b"accept-encoding":
            continue
        for part in value.decode("latin-1").split(","):
            coding, _, parameters = part.partition(";")
            if coding.strip().lower() == "gzip":
                return _weight(parameters) > 0
    return False


async def compressed(body: bytes) -> bytes:
    """Return `body` as gzip; the same bytes for the same body."""
    if len(body) <= _IN_THREAD_BYTES:
        return gzip.compress(body, _LEVEL, mtime=0)
    return await asyncio.to_thread(gzip.compress, body, _LEVEL, mtime=0)


def _weight(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip().lower() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
