"""The broker: every host call that needs more than the worker has is answered here (DESIGN §3).

Attacks it stops (T4): a worker that was taken over calls what its install was not granted, or keeps the daemon busy past the
deadline. The capability is checked again, whatever the worker checked; tenant and install come from the daemon's own grant; a
call has the time that is left to its invocation at most; and whatever goes wrong inside is answered in the function's own shape.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from registry.domain.errors import RefusalError
from runnerd.capabilities.answers import broken, denied
from runnerd.capabilities.catalog import FUNCTIONS, HostFunction
from runnerd.capabilities.denials import explain_denial
from runnerd.capabilities.grants import GuestUser, InvocationGrant
from runnerd.capabilities.handlers import Handler
from runnerd.capabilities.results import HostResult

__all__ = ["CapabilityBroker", "GuestUser", "HostResult", "InvocationGrant", "explain_denial"]

_LOG = logging.getLogger(__name__)
CALL_SECONDS = 5.0
"""Of one host call, where its invocation has more time left."""


class CapabilityBroker:
    """Answers host calls. One for each daemon; keeps nothing between calls.

    Args:
        capabilities: the handlers of each; together exactly one for every function of the catalog that a worker does not answer.
        call_seconds: cap of one call.
        longer: number of a function → its own cap.

    Raises:
        ValueError: two of `capabilities` answer one function, or nobody answers one.
    """

    def __init__(
        self,
        capabilities: Iterable[Mapping[int, Handler]],
        *,
        call_seconds: float = CALL_SECONDS,
        longer: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        self._call_seconds = call_seconds
        self._longer = longer
        self._handlers = _assemble(capabilities)

    async def call(self, grant: InvocationGrant, function: HostFunction, arguments: tuple[object, ...]) -> HostResult:
        """Answer one call.

        1. The capability is in force for this invocation.
        2. There is time left.
        3. The capability's own module answers within that time.

        Never raises but for cancellation: a guest gets an answer of the function's shape for every failure.

        Args:
            grant: of the invocation the call belongs to.
            function: from the catalog; a function that the worker answers itself is not answered here.
            arguments: decoded to exactly the shapes of the catalog.
        """
        handler = self._handlers.get(function.number)
        # SECURITY: (1) the daemon's own check; the worker's is for speed.
        if function.capability not in grant.capabilities or handler is None:
            result = denied(function)
            explanation = explain_denial(function.capability, declared=grant.declared, granted=grant.granted)
            return HostResult(value=result.value, error=result.error, denial=explanation)
        seconds = min(self._longer.get(function.number, self._call_seconds), grant.deadline - time.monotonic())  # (2)
        if seconds <= 0:
            return broken(function)
        try:
            async with asyncio.timeout(seconds):
                return await handler(grant, arguments)  # (3)
        except TimeoutError:
            self._log(grant, function, "timed out")
        except RefusalError as refusal:
            self._log(grant, function, str(refusal))
        except Exception:  # noqa: BLE001 - a failure of ours must not look like one of the guest's
            _LOG.exception("host call failed", extra=_fields(grant, function))
        return broken(function)

    def _log(self, grant: InvocationGrant, function: HostFunction, why: str) -> None:
        _LOG.warning("host call failed: %s", why, extra=_fields(grant, function))


def _assemble(groups: Iterable[Mapping[int, Handler]]) -> Mapping[int, Handler]:
    """Merge the handlers of all capabilities; every brokered function of the catalog has exactly one."""
    handlers: dict[int, Handler] = {}
    for group in groups:
        if not handlers.keys().isdisjoint(group):
            message = "two capabilities answer one function"
            raise ValueError(message)
        handlers.update(group)
    missing = {function.qualified_name for function in FUNCTIONS if not function.local and function.number not in handlers}
    if missing:
        message = f"nobody answers {', '.join(sorted(missing))}"
        raise ValueError(message)
    return MappingProxyType(handlers)


def _fields(grant: InvocationGrant, function: HostFunction) -> dict[str, str]:
    return grant.log_fields | {"function": function.qualified_name}
