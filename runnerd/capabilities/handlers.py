"""What a capability module hands to the broker: one coroutine function for each host function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from runnerd.capabilities.catalog import BY_NAME, HostFunction
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.results import HostResult

Handler = Callable[[InvocationGrant, tuple[object, ...]], Awaitable[HostResult]]
"""Gets arguments of exactly the shapes of the catalog. Answers, or raises: the broker then answers for it."""


def function_named(interface: str, name: str) -> HostFunction:
    """Return a function of the catalog.

    Raises:
        KeyError: it has none of this name; a mistake of ours.
    """
    return BY_NAME[interface, name]
