"""Content hashes: "sha256:" and 64 lower-case hexadecimal digits, nothing else."""

from __future__ import annotations

import hashlib
import re
from typing import NewType

ContentHash = NewType("ContentHash", str)
PREFIX = "sha256:"
_CONTENT_HASH = re.compile(r"sha256:[0-9a-f]{64}\Z")


def is_content_hash(text: str) -> bool:
    """Tell whether `text` is a content hash in its one spelling."""
    return _CONTENT_HASH.match(text) is not None


def content_hash(data: bytes) -> ContentHash:
    """Hash `data`."""
    return ContentHash(PREFIX + hashlib.sha256(data).hexdigest())


def hex_of(value: ContentHash) -> str:
    """Return the 64 digits without the prefix."""
    return value.removeprefix(PREFIX)


def from_hex(digits: str) -> ContentHash:
    """Return the content hash of 64 lower-case digits.

    Raises:
        ValueError: `digits` is not that.
    """
    value = PREFIX + digits
    if not is_content_hash(value):
        message = f"not a SHA-256 in lower-case hexadecimal: {digits[:80]!r}"
        raise ValueError(message)
    return ContentHash(value)
