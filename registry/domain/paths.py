"""The normal form of a request path (T5): one spelling for each resource, the same for whoever reads it on the way.

The attack it stops: `/admin//7`, `/x/../admin/7` or `/admin/%37` is a different string than `/admin/7`, so a check on the string lets it
pass, while a proxy, a file server or the guest's own router reads the same resource. A path that is not in normal form is refused, never
rewritten.

    PathError               a path is not in normal form
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

MAX_PATH_CHARACTERS = 4096
_PCHARS = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*\Z")
"""RFC 3986 `pchar` and slashes: what else arrives is not a path."""
_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_FORBIDDEN_ENCODED = _UNRESERVED | frozenset(b"/\\\x7f") | frozenset(range(0x20))
"""Encoded letters, dots, separators and control bytes serve only to be read differently by somebody else."""


class PathError(ValueError):
    """A path is not in normal form; the text says what to change, and continues a sentence."""


def check_normal_form(path: str) -> None:
    """Accept an absolute path in normal form. One slash at the end is accepted: what it means is the reader's to decide.

    Raises:
        PathError: it is not one.
    """
    if not path.startswith("/"):
        message = "the path must begin with a slash"
        raise PathError(message)
    if len(path) > MAX_PATH_CHARACTERS:
        message = f"the path is longer than {MAX_PATH_CHARACTERS} characters"
        raise PathError(message)
    if _PCHARS.match(path) is None:
        message = "the path holds a character that must be percent-encoded, or an incomplete escape"
        raise PathError(message)
    for digits in _ENCODED.findall(path):
        if int(digits, 16) in _FORBIDDEN_ENCODED:
            message = (
                f"the path holds %{digits}: slashes and control characters are not accepted; letters, digits and '-._~' are sent plain"
            )
            raise PathError(message)
    segments = path[1:].split("/")
    if "" in segments[:-1]:
        message = "the path holds an empty segment (two slashes in a row)"
        raise PathError(message)
    if "." in segments or ".." in segments:
        message = "the path holds a '.' or '..' segment; resolve it first"
        raise PathError(message)
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError as error:
        # SECURITY: over-long spellings of a slash are invalid UTF-8, and lenient decoders read them as one.
        message = "the path's escapes are not valid UTF-8"
        raise PathError(message) from error


def segments_of(path: str) -> tuple[str, ...]:
    """Split a path in normal form into decoded segments; a slash at the end gives an empty last one.

    Decoded, so that `/a%3Ab` and `/a:b`, which guests read alike, match alike.
    """
    return tuple(unquote_to_bytes(segment).decode() for segment in path[1:].split("/"))
