"""Host calls that passed the call table: bounded, brokered, counted, answered in the worker's words."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import structlog

from registry.domain.errors import RefusalError
from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.results import HostResult, failed, succeeded
from runnerd.capabilities.values import ValueMismatchError, reply_to_wire
from runnerd.dispatch.calls import HostCallRequested
from runnerd.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)
_INTERNAL = "internal"


class Broker(Protocol):
    """Answers host calls (`runnerd.capabilities.broker.CapabilityBroker`)."""

    async def call(self, grant: InvocationGrant, function: HostFunction, arguments: tuple[object, ...]) -> HostResult:
        """Answer one call of `function`."""


class HostCallDesk:
    """Answers host calls of all workers.

    Args:
        broker: has the daemon's half of each capability.
        metrics: counts by capability and result.
        most_seconds: for one host call, whatever is left of the deadline.
    """

    def __init__(self, broker: Broker, metrics: Metrics, *, most_seconds: float = 30.0) -> None:
        self._broker = broker
        self._metrics = metrics
        self._most_seconds = most_seconds

    async def answer(self, asked: HostCallRequested) -> bytes:
        """Return the payload of the HostReply. Whatever fails is the function's own failure case, never an exception."""
        call, function = asked.call, asked.function
        result, word = await self._brokered(asked)
        self._metrics.host_call(function.capability, word)
        if result.denial is not None:
            call.notes.explain(result.denial)
        return _reply(function, result)

    def violation(self) -> None:
        """Count a frame that broke the protocol."""
        self._metrics.host_call("other", "violation")

    async def _brokered(self, asked: HostCallRequested) -> tuple[HostResult, str]:
        call, function = asked.call, asked.function
        remaining = min(call.deadline - time.monotonic(), self._most_seconds)
        # SECURITY: what arrives after the deadline or for a cancelled call has no effect; its guest is about to end.
        if call.cancelled or remaining <= 0:
            return failure_of(function), "timeout"
        try:
            async with asyncio.timeout(remaining):
                result = await self._broker.call(call.grant, function, asked.arguments)
        except TimeoutError:
            return failure_of(function), "timeout"
        except RefusalError as error:
            _log.warning("host_call_failed", function=function.qualified_name, reason=error.reason.value, request_id=call.grant.request_id)
            return failure_of(function), "error"
        except Exception:  # noqa: BLE001 - a bug of a capability is that call's failure, not the end of the worker.
            _log.exception("host_call_failed", function=function.qualified_name, request_id=call.grant.request_id)
            return failure_of(function), "error"
        # In `count` mode a request passes, with an explanation of what would have refused it.
        if result.denial is not None and (function.error is None or result.error is not None):
            return result, "denied"
        return result, "ok" if result.error is None else "error"


def failure_of(function: HostFunction) -> HostResult:
    """Return how `function` says that something of ours failed: its case "internal", its last case, or what it says when denied."""
    if function.error is not None:
        cases = function.error.cases
        return failed(_INTERNAL if _INTERNAL in cases else cases[-1])
    return succeeded(function.denied)


def _reply(function: HostFunction, result: HostResult) -> bytes:
    try:
        return reply_to_wire(function, result.value, error=result.error).SerializeToString()
    except ValueMismatchError:
        _log.exception("host_reply_mismatch", function=function.qualified_name)
        failure = failure_of(function)
        return reply_to_wire(function, failure.value, error=failure.error).SerializeToString()
