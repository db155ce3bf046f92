"""Header fields of a call, on their way to a guest and back: the bounds and names that every reader on the way agrees on."""

from __future__ import annotations

MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 * 1024
"""Names and values together."""

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""RFC 9110 §7.6.1: they speak to the next machine, and none of ours passes them on."""
