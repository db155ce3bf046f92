"""Which hosts an install may reach: what its manifest declares, what the tenant leaves of that, and a tenant's time in `count` mode.

The attack it stops: "*.example.com" that also matches "badexample.com" or "example.com.evil.net", and a pattern that matches an address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from registry.domain.headers import HOP_BY_HOP
from registry.domain.ids import is_secret_name

HOST_PATTERN: Final = r"^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""A name in lower case, or "*." and a name; the latter stands for one or more labels in front of it."""
MAX_HOST_CHARACTERS: Final = 253
MAX_HOSTS: Final = 256
COUNT_MODE_MOST: Final = timedelta(days=14)
"""`count` relaxes the tenant's list; nobody may forget it (T10)."""
DEFAULT_PORTS: Final = (443,)
DEFAULT_SCHEMES: Final = ("https",)
MAX_BINDINGS: Final = 32
_MAX_PORT: Final = 65_535
_HEADER = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_NEVER_BOUND: Final = HOP_BY_HOP | {"host", "content-length", "content-type", "accept-encoding", "expect"}
_HOST = re.compile(HOST_PATTERN)
_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRule:
    """One entry of a manifest's `egress`."""

    host: str
    """A name, or "*." and a name."""
    ports: tuple[int, ...] = DEFAULT_PORTS
    schemes: tuple[str, ...] = DEFAULT_SCHEMES

    def admits(self, scheme: str, port: int) -> bool:
        """Tell whether this scheme and port are meant, for a host that matches."""
        return scheme in self.schemes and port in self.ports


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretBinding:
    """A secret that the daemon puts into one header of requests to one host; the guest writes a placeholder and never sees it.

    A bound host can always reveal its secret: one that stores or shows what it is sent must not be bound (T33).
    """

    secret: str
    """Name of the install's secret."""
    header: str
    """In lower case."""
    host: str
    """Exact; requests to it go over https."""
    port: int = 443

    @property
    def is_valid(self) -> bool:
        """Whether it is one that can be written; the host is still to be compared with what is declared."""
        return (
            is_secret_name(self.secret)
            and _HEADER.match(self.header) is not None
            and self.header not in _NEVER_BOUND
            and is_host_pattern(self.host)
            and not self.host.startswith("*")
            and not is_address_like(self.host)
            and 1 <= self.port <= _MAX_PORT
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallEgress:
    """What one install may reach, before the operator's ceiling. Without a rule: nothing."""

    rules: tuple[EgressRule, ...] = ()
    """Of the manifest that the tenant consented to."""
    hosts: tuple[str, ...] | None = None
    """What the tenant leaves of them; None where it left all."""
    count_until: datetime | None = None
    """Until then, the list of hosts is counted and not enforced; set by an operator only."""
    secrets: tuple[SecretBinding, ...] = ()

    def counts_at(self, now: datetime) -> bool:
        """Tell whether the install is in `count` mode."""
        # SECURITY: a date that no service of ours writes is no permission.
        return self.count_until is not None and now < self.count_until <= now + COUNT_MODE_MOST + timedelta(minutes=5)


NO_EGRESS: Final = InstallEgress()
"""Reaches nothing."""


def rules_of(documents: Sequence[Mapping[str, Any]] | None) -> tuple[EgressRule, ...]:
    """Return the entries of a stored manifest's `egress`."""
    return tuple(
        EgressRule(
            host=document["host"],
            ports=tuple(document.get("ports") or DEFAULT_PORTS),
            schemes=tuple(document.get("schemes") or DEFAULT_SCHEMES),
        )
        for document in documents or ()
    )


def is_host_pattern(text: str) -> bool:
    """Tell whether `text` is a host or "*." and a host, in the one spelling that is compared."""
    return len(text) <= MAX_HOST_CHARACTERS and _HOST.match(text) is not None and not text.endswith("\n")


def host_matches(pattern: str, host: str) -> bool:
    """Tell whether a host, in lower case and ASCII, is meant by a pattern.

    "*.example.com" means a.example.com and b.a.example.com, and neither example.com nor badexample.com. An address is meant only by
    itself.
    """
    if not pattern.startswith("*."):
        return host == pattern
    return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1 and not is_address_like(host)


def any_matches(patterns: Iterable[str], host: str) -> bool:
    """Tell whether one of the patterns means the host."""
    return any(host_matches(pattern, host) for pattern in patterns)


def is_address_like(host: str) -> bool:
    """Tell whether a host would be read as an address by some program: an IPv6 literal, or a last label that is a number."""
    return ":" in host or _NUMBER.match(host.rpartition(".")[2]) is not None


def covers(rules: Iterable[EgressRule], host: str) -> bool:
    """Tell whether a tenant that allows the pattern `host` stays within what is declared."""
    for rule in rules:
        if rule.host == host:
            return True
        if rule.host.startswith("*.") and host.removeprefix("*").endswith(rule.host[1:]):
            return True
    return False
