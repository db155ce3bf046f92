"""Identifiers and names: their types, their grammar, and how new ones are made."""

from __future__ import annotations

import os
import re
import time
from typing import NewType

TenantId = NewType("TenantId", str)
PublisherId = NewType("PublisherId", str)
ExtensionId = NewType("ExtensionId", str)
VersionId = NewType("VersionId", str)
InstallId = NewType("InstallId", str)
ExecutionId = NewType("ExecutionId", str)
ScheduleId = NewType("ScheduleId", str)

EXTENSION_NAME_PATTERN = r"^[a-z0-9]+(\.[a-z0-9-]+)+$"
MAX_EXTENSION_NAME_CHARACTERS = 128
PUBLISHER_NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?$"
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_SECRET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_EXTENSION_NAME = re.compile(EXTENSION_NAME_PATTERN)
_PUBLISHER_NAME = re.compile(PUBLISHER_NAME_PATTERN)


def new_id() -> str:
    """Make a UUIDv7 (RFC 9562 §5.7), so that rows made together lie together in an index.

    Made here and not by the database: PostgreSQL before 18 has no uuidv7(), and CPython before 3.14 neither.
    """
    milliseconds = time.time_ns() // 1_000_000
    # 74 random bits, cut out of 80 that are asked for at once.
    random = int.from_bytes(os.urandom(10), "big")
    high = (milliseconds & (1 << 48) - 1) << 16 | 0x7 << 12 | random >> 68
    digits = f"{high:016x}{0b10 << 62 | random & (1 << 62) - 1:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def is_uuid(text: str) -> bool:
    """Tell whether `text` is a UUID in canonical lower-case form."""
    return _UUID.match(text) is not None


def is_tenant_id(text: str) -> bool:
    """Tell whether `text` can be a tenant id: 1 to 128 of [A-Za-z0-9._-], beginning with a letter or digit."""
    return _TENANT.match(text) is not None


def is_extension_name(text: str) -> bool:
    """Tell whether `text` is a reverse-domain extension name (CONTRACT §5)."""
    return len(text) <= MAX_EXTENSION_NAME_CHARACTERS and _EXTENSION_NAME.fullmatch(text) is not None


def is_publisher_name(text: str) -> bool:
    """Tell whether `text` can name a publisher: 1 to 64 of [a-z0-9.-], a letter or digit at both ends, and not an id."""
    return _PUBLISHER_NAME.fullmatch(text) is not None and not is_uuid(text)


def is_request_id(text: str) -> bool:
    """Tell whether `text` can be a request id: 1 to 128 of [A-Za-z0-9._-]."""
    return _REQUEST_ID.match(text) is not None


def is_secret_name(text: str) -> bool:
    """Tell whether `text` can name a secret: 1 to 128 of A-Z a-z 0-9 _ . -, not beginning with "." or "-"."""
    return _SECRET_NAME.match(text) is not None
