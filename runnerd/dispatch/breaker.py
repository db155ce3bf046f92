"""The circuit breaker: a version that keeps ending its worker is paused, then tried alone (T28, N13).

The attack it stops: a guest that crashes its worker natively, makes it hang or has it killed for its memory costs a process and its
neighbours' calls each time, and every such end is another try at an escape. Three within ten minutes pause that version for its tenant:
CIRCUIT_OPEN, without a worker, until a pause has passed that doubles each time; then one call at a time tries it, in a worker of its
own, and the first that leaves its worker alive ends the pause.

Whose crash was it? A worker holds calls of one tenant, but perhaps of several of its versions, and nothing tells which of them ended it.

- Exactly one version was running: that is an incident of that version, one for each worker, however many of its calls were in it.
- Several were: nobody is blamed. All of them run apart from each other for the next ten minutes, each version in workers of its own, so
  that the next end has one suspect. An innocent version is never paused for what its neighbour did.

Circuits belong to a tenant's version, not to the version everywhere: a tenant that finds an input which kills its worker must not be able
to take the extension away from the others, whose workers it cannot reach.

No input or output here but metrics and the log; time comes from `clock`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

import structlog

from registry.domain.errors import Reason, RefusalError
from runnerd.telemetry.metrics import Metrics

MOST_CIRCUITS: Final = 4_096
"""Versions remembered; each has ended a worker within the window, so nobody gets here cheaply. Beyond it the oldest is forgotten."""

_log = structlog.get_logger(__name__)


class TenantVersion(NamedTuple):
    """A version, as one tenant runs it."""

    tenant_id: str
    version_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """When a circuit opens, and for how long."""

    incidents: int = 3
    """So many within `window_seconds` open it."""
    window_seconds: float = 600.0
    first_pause_seconds: float = 30.0
    longest_pause_seconds: float = 600.0


class Passage:
    """A call's leave to run. Use it as a context manager around the call's time in a worker."""

    __slots__ = ("_breaker", "_circuit", "alone")

    def __init__(self, breaker: CircuitBreaker | None = None, circuit: _Circuit | None = None, *, alone: bool = False) -> None:
        """Use `CircuitBreaker.admit` instead."""
        self.alone = alone
        """Whether the call must have a worker without any other version."""
        self._breaker = breaker
        self._circuit = circuit

    def survived(self) -> None:
        """Say that the call has ended and its worker lives on."""
        if self._breaker is not None and self._circuit is not None:
            self._breaker._tried(self, self._circuit)  # noqa: SLF001 - both classes are one thing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._circuit is not None and self._circuit.trial is self:
            # Neither good nor bad (refused, cancelled): somebody else may try.
            self._circuit.trial = None


_FREE: Final = Passage()
_APART: Final = Passage(alone=True)


@dataclass(slots=True, eq=False)
class _Circuit:
    version: TenantVersion
    incidents: deque[float] = field(default_factory=deque)
    touched: float = 0.0
    """When it was last suspected."""
    openings: int = 0
    """Since it was last forgotten; each doubles the pause."""
    open_until: float | None = None
    """None where it is closed."""
    trial: Passage | None = None


class CircuitBreaker:
    """The circuits of one daemon. Belongs to one event loop.

    Args:
        metrics: counts transitions.
        settings: when it opens.
        clock: monotonic seconds.
    """

    def __init__(self, metrics: Metrics, settings: BreakerSettings | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._settings = settings or BreakerSettings()
        self._clock = clock
        self._circuits: dict[TenantVersion, _Circuit] = {}
        self._open = 0

    @property
    def open(self) -> int:
        """Circuits that are not closed: paused, or being tried."""
        self.forget_old()
        return self._open

    def forget_old(self) -> None:
        """Forget what was neither suspected nor paused within the window, so that the gauge says what there is now."""
        moment = self._clock() - self._settings.window_seconds
        for circuit in list(self._circuits.values()):
            if circuit.trial is None and max(circuit.touched, circuit.open_until or 0.0) <= moment:
                self._forget(circuit)

    def admit(self, version: TenantVersion) -> Passage:
        """Let a call run, or refuse it.

        Raises:
            RefusalError: CIRCUIT_OPEN, with the time after which trying again makes sense.
        """
        circuit = self._circuits.get(version)
        if circuit is None:
            return _FREE
        now = self._clock()
        if circuit.open_until is None:
            return _APART if now - circuit.touched < self._settings.window_seconds else _FREE
        if now < circuit.open_until:
            raise _paused(circuit.open_until - now)
        if circuit.trial is not None:
            raise _paused(1.0)
        circuit.trial = Passage(self, circuit, alone=True)
        self._moved(circuit, "half_open")
        return circuit.trial

    def worker_died(self, suspects: Collection[TenantVersion]) -> None:
        """Account for the end of a worker that nobody asked to end.

        Args:
            suspects: versions whose calls may have caused it.
        """
        self.forget_old()
        now = self._clock()
        for version in suspects:
            circuit = self._circuits.setdefault(version, _Circuit(version))
            circuit.touched = now
            if len(suspects) == 1:
                self._incident(circuit, now)
        while len(self._circuits) > MOST_CIRCUITS:
            self._forget(min(self._circuits.values(), key=lambda circuit: circuit.touched))

    def _incident(self, circuit: _Circuit, now: float) -> None:
        if circuit.open_until is None:
            circuit.incidents.append(now)
            while circuit.incidents[0] <= now - self._settings.window_seconds:
                circuit.incidents.popleft()
            if len(circuit.incidents) >= self._settings.incidents:
                self._open += 1
                self._pause(circuit, now)
        elif now >= circuit.open_until:
            # The trial, or what it left behind: its guest did not end and the backstop came after the answer.
            self._pause(circuit, now)

    def _pause(self, circuit: _Circuit, now: float) -> None:
        settings = self._settings
        pause = min(settings.first_pause_seconds * 2.0 ** min(circuit.openings, 32), settings.longest_pause_seconds)
        circuit.openings += 1
        circuit.open_until = now + pause
        circuit.incidents.clear()
        circuit.trial = None
        self._moved(circuit, "open", seconds=pause)

    def _tried(self, trial: Passage, circuit: _Circuit) -> None:
        if circuit.trial is trial:
            circuit.trial = None
            circuit.open_until = None
            self._open -= 1
            self._moved(circuit, "closed")

    def _moved(self, circuit: _Circuit, state: str, **details: float) -> None:
        self._metrics.circuit(state, open_now=self._open)
        version = circuit.version
        _log.warning("circuit", state=state, tenant_id=version.tenant_id, version_id=version.version_id, **details)

    def _forget(self, circuit: _Circuit) -> None:
        del self._circuits[circuit.version]
        # A call that is trying it right now has nothing left to decide.
        circuit.trial = None
        if circuit.open_until is not None:
            self._open -= 1
            self._moved(circuit, "closed")


def _paused(seconds: float) -> RefusalError:
    return RefusalError(
        Reason.CIRCUIT_OPEN,
        "This version ended its worker several times and is paused for this tenant; another version is not.",
        retry_after_seconds=max(1, math.ceil(seconds)),
    )
