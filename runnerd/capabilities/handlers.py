"""What a capability module hands to the broker: one coroutine function for each host function; and what such modules share."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from runnerd.capabilities.catalog import BY_NAME, HostFunction
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.results import HostResult

Handler = Callable[[InvocationGrant, tuple[object, ...]], Awaitable[HostResult]]
"""Gets arguments of exactly the shapes of the catalog. Answers, or raises: the broker then answers for it."""


class Refusal(Protocol):
    """A typed refusal by the service behind a capability."""

    @property
    def case(self) -> str:
        """For the guest."""

    @property
    def detail(self) -> str:
        """For the log."""


def log_refusal(log: logging.Logger, text: str, refusal: Refusal, grant: InvocationGrant) -> None:
    """Log a refusal; what is a failure of ours an operator sees, the rest is a guest's own doing.

    Args:
        log: of the capability's module.
        text: with "%s" for the detail.
        refusal: what the service raised.
        grant: of the invocation.
    """
    level = logging.WARNING if refusal.case == "internal" else logging.DEBUG
    log.log(level, text, refusal.detail, extra=grant.log_fields)


def function_named(interface: str, name: str) -> HostFunction:
    """Return a function of the catalog.

    Raises:
        KeyError: it has none of this name; a mistake of ours.
    """
    return BY_NAME[interface, name]
