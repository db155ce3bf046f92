"""Where a process runs, and what that allows: the questions that the settings of both services and the command line ask alike.

Attacks this stops: plaintext to another machine because a host only looked like this one (T8); a production process on an embedded
development database, whose superuser is whoever started it (T3); a limit that does not apply because its name was misspelt.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

EMBEDDED_SOCKET_PREFIX: Final = "extpg-"
"""How the socket folder of `registry.embedded_postgres` begins."""


class Environment(StrEnum):
    """Where the process runs."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host` (without brackets). A name other than localhost is not taken for one."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_embedded_database(url: str) -> bool:
    """Tell whether `url` leads to a server of `registry.embedded_postgres`: a UNIX socket in a folder that only it makes.

    Raises:
        ValueError: it is no URL.
    """
    parts = urlsplit(url)
    hosts = [unquote(parts.hostname or ""), *(host for value in parse_qs(parts.query).get("host", []) for host in value.split(","))]
    return any(segment.startswith(EMBEDDED_SOCKET_PREFIX) for host in hosts for segment in Path(host).parts)


def refuse_unknown_settings(names: Iterable[str], *, prefix: str, fields: Iterable[str]) -> None:
    """Refuse an environment variable that begins with `prefix` and names no setting.

    Args:
        names: of the environment's variables.
        prefix: of the service's settings, in upper case.
        fields: the settings' names; what follows "__" is checked where it is read.

    Raises:
        ValueError: there is one; the text names it and not its value.
    """
    known = {f"{prefix}{field.upper()}" for field in fields}
    for name in names:
        if name.upper().startswith(prefix) and name.upper().split("__", 1)[0] not in known:
            message = f"unknown setting {name}; a misspelt limit would otherwise silently not apply"
            raise ValueError(message)
