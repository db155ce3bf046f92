"""What may be looked up in a text or UUID column: everything else names nothing, and must not become an error of the database."""

from __future__ import annotations

from registry.domain.ids import is_uuid


def text_or_nothing(value: str) -> str:
    """Return `value`, or "" (which no row has) if PostgreSQL could not hold it: it contains NUL or half a surrogate pair."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return ""
    return "" if "\0" in value else value


def uuid_or_none(value: str) -> str | None:
    """Return `value` if it is a UUID in canonical form, else None (which equals nothing in SQL)."""
    return value if is_uuid(value) else None
