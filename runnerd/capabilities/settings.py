"""extrunner:host/config: the tenant's settings for this install (cap:config.read, which every install has)."""

from __future__ import annotations

from collections.abc import Mapping

from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named
from runnerd.capabilities.results import HostResult, succeeded

_INTERFACE = "extrunner:host/config"


def settings_handlers() -> Mapping[int, Handler]:
    """Return the handlers, by number of the function."""
    return {function_named(_INTERFACE, "get").number: _get, function_named(_INTERFACE, "list").number: _list}


async def _get(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
    (key,) = arguments
    return succeeded(grant.config.get(str(key)))


async def _list(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
    del arguments
    return succeeded([{"key": key, "value": value} for key, value in sorted(grant.config.items())])
