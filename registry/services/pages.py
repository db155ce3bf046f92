"""Opaque cursors: where a page ended, as text that callers hand back unread."""

from __future__ import annotations

import base64
import json
from typing import Final

from registry.domain.errors import Reason, RefusalError
from registry.repositories.searchable import text_or_nothing

MAX_PAGE: Final = 100
_MAX_CURSOR_CHARACTERS: Final = 8_192
"""Room for the longest namespace and key of the storage, every character of them escaped as a surrogate pair."""


def encode_cursor(*parts: str) -> str:
    """Make a cursor of the parts that identify the last thing returned."""
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode("ascii")).decode("ascii").rstrip("=")


def decode_cursor(cursor: str, parts: int) -> tuple[str, ...]:
    """Return the parts of a cursor.

    Raises:
        RefusalError: INVALID_REQUEST: not one of ours.
    """
    decoded = _decoded(cursor) if len(cursor) <= _MAX_CURSOR_CHARACTERS else None
    if not isinstance(decoded, list) or len(decoded) != parts or not all(_is_searchable(part) for part in decoded):
        raise RefusalError(Reason.INVALID_REQUEST, "The cursor is not one that this service gave; begin again without it.")
    return tuple(decoded)


def _decoded(cursor: str) -> object:
    try:
        decoded: object = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):  # binascii.Error and UnicodeDecodeError are ValueErrors
        return None
    return decoded


def _is_searchable(part: object) -> bool:
    return isinstance(part, str) and text_or_nothing(part) == part


def checked_limit(limit: int) -> int:
    """Return `limit` if it is a possible page size.

    Raises:
        RefusalError: INVALID_REQUEST.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise RefusalError(Reason.INVALID_REQUEST, f"The page size must be 1 to {MAX_PAGE}.")
    return limit
