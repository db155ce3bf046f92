"""What the parts of an argument are to a capability: the wire's decoder made them of the catalog's shapes, the type checker does not know.

Each raises TypeError where it is another type: a mistake of ours, which the broker answers as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def record_of(value: object) -> Mapping[str, Any]:
    """Return a record."""
    if not isinstance(value, Mapping):
        message = "the argument is a record"
        raise TypeError(message)
    return value


def list_of(value: object) -> list[Any]:
    """Return a list."""
    if not isinstance(value, list):
        message = "the argument is a list"
        raise TypeError(message)
    return value


def optional_int(value: object) -> int | None:
    """Return an optional number."""
    if value is not None and not isinstance(value, int):
        message = "the argument is a number"
        raise TypeError(message)
    return value


def optional_text(value: object) -> str | None:
    """Return an optional string."""
    return None if value is None else str(value)
