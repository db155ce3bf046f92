"""The names of host capabilities, as manifests, grants and operators write them."""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = "cap:"

KNOWN: frozenset[str] = frozenset(
    {
        "context.read",
        "log.emit",
        "config.read",
        "secrets.get",
        "http.fetch",
        "storage.kv",
        "ui.proxy",
        "user.read",
        "scheduler.manage",
        "invoice.manual.create",
        "client.read",
        "service.read",
        "metrics.emit",
        "events.emit",
    }
)
"""Every capability (CONTRACT §4), without its optional "cap:" prefix."""

ALWAYS: frozenset[str] = frozenset({"context.read", "log.emit", "config.read"})
"""Granted to every install: they reach only what is the install's own."""


def normalise(name: str) -> str:
    """Return `name` without its optional prefix.

    Raises:
        ValueError: it is not a known capability.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in KNOWN:
        message = f"unknown capability {name[:80]!r}"
        raise ValueError(message)
    return bare


def effective(*, declared: Iterable[str], granted: Iterable[str], ceiling: Iterable[str] = KNOWN) -> frozenset[str]:
    """Return declared ∩ granted ∩ ceiling, and what everybody has."""
    return (frozenset(declared) & frozenset(granted) & frozenset(ceiling)) | ALWAYS
