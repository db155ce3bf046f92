"""Who may run now: concurrency by tenant and install, fair and bounded waiting, early refusal (DESIGN §7, T23).

The attacks it stops. *One tenant fills every slot* with calls that take long: a tenant holds at most a quarter of all slots (at least 2),
and the last quarter is for tenants below their fair share. *One tenant fills the machine* with short calls: beyond `running` calls that
compute (and do not wait for the host), a tenant starts none above its fair share, so that another's call finds a machine that is busy but
not crowded; a tenant with nothing running is never held up by it. *An endless queue*: waiting is bounded in number, and a call that
cannot be served before its deadline is refused at once instead of dying in the queue. *A flood makes waiting expensive*: every operation
costs O(log n) of those who wait.

Waiters are served by tenant, then by install, the least time used first (`fairness.py`). The time that counts is the daemon's own: how
long a call ran in its place, without what it waited for the host; a worker's figures are not asked.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Final, Self

from registry.domain.errors import Reason, RefusalError
from runnerd.dispatch.fairness import Flow, Turns, smoothed

REMEMBER_SECONDS: Final = 1.0
"""How long a tenant that has gone counts as present: one that calls now and then finds its share free, and owes what it has used."""
_MOST_IDLE_INSTALLS: Final = 64
"""Installs without a call that are remembered for one tenant."""
_MOST_RETRY_SECONDS: Final = 30
_ROUNDING: Final = 1e-9
"""A third of three is one, whatever floating point says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Bounds of one daemon."""

    slots: int
    """Calls in flight, all tenants together."""
    running: int = 1_024
    """Calls that compute at once before tenants are held to their fair share of this; a few for each CPU fill it."""
    per_tenant: int = 16
    per_install: int = 8
    waiting: int = 512
    waiting_per_tenant: int = 64

    @property
    def tenant_cap(self) -> int:
        """What one tenant may have in flight: never more than a quarter of the slots, at least 2 (or all there are)."""
        return max(1, min(self.per_tenant, max(2, self.slots // 4), self.slots))

    @property
    def install_cap(self) -> int:
        """What one install may have in flight."""
        return max(1, min(self.per_install, self.tenant_cap))

    @property
    def open_slots(self) -> int:
        """Slots that anybody may take; the rest is for tenants below their fair share."""
        return self.slots - self.slots // 4


class _Install(Flow):
    __slots__ = ("hold", "in_flight", "key", "waiters")

    def __init__(self, key: str, virtual: float) -> None:
        super().__init__(1.0, virtual)
        self.key = key
        self.in_flight = 0
        self.hold = 0.0
        """Estimate of how long a call keeps its place, in seconds."""
        self.waiters: OrderedDict[Place, asyncio.Future[None]] = OrderedDict()


class _Tenant(Flow):
    __slots__ = ("idle", "in_flight", "installs", "key", "now", "running", "turns", "waiting", "waiting_installs")

    def __init__(self, key: str, weight: float, virtual: float) -> None:
        super().__init__(weight, virtual)
        self.key = key
        self.in_flight = 0
        self.running = 0
        """Of these, calls that do not wait for the host."""
        self.waiting = 0
        self.waiting_installs = 0
        self.now = 0.0
        """Virtual time among its installs."""
        self.installs: dict[str, _Install] = {}
        self.idle: OrderedDict[str, _Install] = OrderedDict()
        self.turns: Turns[_Install] = Turns()
        """Installs with waiters and room."""

    def install(self, key: str) -> _Install:
        """Return an install, which must get a call or a waiter now."""
        install = self.installs.get(key)
        if install is None:
            install = self.installs[key] = _Install(key, self.now)
        elif self.idle.pop(key, None) is not None:
            # Credit is not saved up; debt is kept.
            install.virtual = max(install.virtual, self.now)
        return install

    def note_idle(self, install: _Install) -> None:
        """Note that an install has no call and no waiter; the one that was idle longest goes where there are too many."""
        self.idle[install.key] = install
        if len(self.idle) > _MOST_IDLE_INSTALLS:
            key, _ = self.idle.popitem(last=False)
            del self.installs[key]


class Place:
    """A place of one call, from `Admission.enter`: `async with` waits for it and gives it back."""

    __slots__ = (
        "_admission",
        "_charged",
        "_deadline",
        "_entered",
        "_install",
        "_install_key",
        "_paused",
        "_tenant",
        "_tenant_key",
        "_waited",
    )

    _tenant: _Tenant
    _install: _Install

    def __init__(self, admission: Admission, tenant_id: str, install_id: str, deadline: float) -> None:
        self._admission = admission
        self._tenant_key = tenant_id
        self._install_key = install_id
        self._deadline = deadline
        self._entered: float | None = None
        self._charged = (0.0, 0.0)
        self._waited = 0.0
        """Seconds of waiting for the host so far."""
        self._paused: float | None = None

    async def __aenter__(self) -> Self:
        waiting = self._admission._enter(self)  # noqa: SLF001 - a place and its admission are one thing
        if waiting is not None:
            await self._admission._wait(self, waiting)  # noqa: SLF001
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._admission._leave(self)  # noqa: SLF001

    def pause(self) -> None:
        """Say that the call waits for the host from now on: it keeps its place, and another may compute meanwhile.

        Nothing where the place was given back: the host may still be at work for a call that nobody waits for.
        """
        if self._paused is None and self._entered is not None:
            self._paused = time.monotonic()
            self._admission._pause(self._tenant)  # noqa: SLF001

    def resume(self) -> None:
        """Say that the call goes on. Nothing where it was not paused."""
        if self._paused is not None:
            self._waited += time.monotonic() - self._paused
            self._paused = None
            self._admission._resume(self._tenant)  # noqa: SLF001


class Admission:
    """Counts calls in flight and keeps the rest waiting. Belongs to one event loop.

    Args:
        limits: bounds.
        weights: tenant → weight of its share; 1 for those that are not in it.
    """

    def __init__(self, limits: AdmissionLimits, weights: Mapping[str, float] = MappingProxyType({})) -> None:
        self._limits = limits
        self._weights = weights
        # Read once: these are properties.
        self._tenant_cap, self._install_cap, self._open_slots = limits.tenant_cap, limits.install_cap, limits.open_slots
        self._in_flight = 0
        self._running = 0
        self._waiting = 0
        self._now = 0.0
        """Virtual time among tenants: where the one that started last stood."""
        self._tenants: dict[str, _Tenant] = {}
        """Everybody with a call, a waiter or a recent past."""
        self._weight = 0.0
        """Of all these together."""
        self._idle: OrderedDict[str, float] = OrderedDict()
        """Tenants that have only a past, and since when; the oldest first."""
        self._turns: Turns[_Tenant] = Turns()
        """Tenants with waiters that have room and are below their share."""
        self._crowding: Turns[_Tenant] = Turns()
        """Tenants with waiters that have room but are not below their share: they start only where nobody misses it."""

    @property
    def in_flight(self) -> int:
        """Calls admitted and not ended."""
        return self._in_flight

    @property
    def running(self) -> int:
        """Of these, calls that do not wait for the host."""
        return self._running

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return self._waiting

    @property
    def remembered(self) -> int:
        """Tenants with a call, a waiter or a recent past."""
        return len(self._tenants)

    def enter(self, tenant_id: str, install_id: str, *, deadline: float) -> Place:
        """Return a place to hold with `async with`.

        Args:
            tenant_id: whose call.
            install_id: of which install.
            deadline: on the clock of `time.monotonic()`; waiting ends there.

        Entering it raises:
            RefusalError: CONCURRENCY_LIMIT where the tenant itself has too much running, OVERLOADED where everybody together has; at once
                where the queue is full or longer than the call can wait, at the deadline else. Says when to try again.
        """
        return Place(self, tenant_id, install_id, deadline)

    # --- a call comes and goes -----------------------------------------------------------------------------------------------------

    def _enter(self, place: Place) -> asyncio.Future[None] | None:
        """Start a call, or let it wait for the future that is returned."""
        self._forget_idle(time.monotonic())
        tenant = self._tenant(place._tenant_key)  # noqa: SLF001
        install = tenant.install(place._install_key)  # noqa: SLF001
        place._tenant, place._install = tenant, install  # noqa: SLF001
        # Nobody is overtaken: whoever waits elsewhere cannot start now, or `_serve` would have let them.
        if not install.waiters and self._has_room(tenant, install) and (self._is_open() or self._is_below_share(tenant)):
            self._start(place)
            return None
        try:
            self._check_queue(tenant, install, place._deadline)  # noqa: SLF001
        except RefusalError:
            self._tidy(tenant, install)
            raise
        waiting = asyncio.get_running_loop().create_future()
        install.waiters[place] = waiting
        tenant.waiting += 1
        tenant.waiting_installs += len(install.waiters) == 1
        self._waiting += 1
        self._file(tenant, install)
        self._serve()
        return waiting

    async def _wait(self, place: Place, waiting: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(place._deadline - time.monotonic()):  # noqa: SLF001
                await waiting
        except BaseException as error:
            tenant, install = place._tenant, place._install  # noqa: SLF001
            refusal = self._refusal(tenant, install) if isinstance(error, TimeoutError) else None
            if place._entered is not None:  # noqa: SLF001
                # Admitted in the very moment in which the wait ended: the place must go to the next.
                self._leave(place)
            else:
                if place in install.waiters:
                    self._unqueue(place)
                self._file(tenant, install)
                self._tidy(tenant, install)
            if refusal is not None:
                raise refusal from error
            raise

    def _start(self, place: Place) -> None:
        tenant, install = place._tenant, place._install  # noqa: SLF001
        self._in_flight += 1
        self._running += 1
        tenant.in_flight += 1
        tenant.running += 1
        install.in_flight += 1
        self._now = max(self._now, tenant.virtual)
        tenant.now = max(tenant.now, install.virtual)
        place._charged = (tenant.charge(), install.charge())  # noqa: SLF001
        place._entered = time.monotonic()  # noqa: SLF001

    def _leave(self, place: Place) -> None:
        place.resume()
        tenant, install = place._tenant, place._install  # noqa: SLF001
        held = 0.0 if place._entered is None else time.monotonic() - place._entered  # noqa: SLF001
        used = held - place._waited  # noqa: SLF001
        place._entered = None  # noqa: SLF001
        for flow, charged in zip((tenant, install), place._charged, strict=True):  # noqa: SLF001
            flow.settle(charged, used)
        install.hold = smoothed(install.hold, held)
        self._in_flight -= 1
        self._running -= 1
        tenant.in_flight -= 1
        tenant.running -= 1
        install.in_flight -= 1
        self._tidy(tenant, install)
        if self._waiting:
            self._file(tenant, install)
            self._serve()

    def _pause(self, tenant: _Tenant) -> None:
        self._running -= 1
        tenant.running -= 1
        if self._waiting:
            self._file(tenant)
            self._serve()

    def _resume(self, tenant: _Tenant) -> None:
        self._running += 1
        tenant.running += 1
        if tenant.waiting:
            self._file(tenant)

    # --- who has room --------------------------------------------------------------------------------------------------------------

    def _has_room(self, tenant: _Tenant, install: _Install) -> bool:
        return self._in_flight < self._limits.slots and tenant.in_flight < self._tenant_cap and install.in_flight < self._install_cap

    def _is_open(self) -> bool:
        """Tell whether a call may start whoever makes it."""
        return self._running < self._limits.running and self._in_flight < self._open_slots

    def _is_below_share(self, tenant: _Tenant) -> bool:
        limits, part = self._limits, tenant.weight / self._weight + _ROUNDING
        # Everybody may have one.
        return tenant.running < max(1, int(limits.running * part)) and tenant.in_flight < max(1, int(limits.slots * part))

    def _check_queue(self, tenant: _Tenant, install: _Install, deadline: float) -> None:
        """Raise RefusalError where a call must not wait, or would wait in vain."""
        limits = self._limits
        if self._waiting >= limits.waiting or tenant.waiting >= limits.waiting_per_tenant:
            raise self._refusal(tenant, install)
        if time.monotonic() + self._expected_wait(tenant, install) >= deadline:
            raise self._refusal(tenant, install)

    @staticmethod
    def _expected_wait(tenant: _Tenant, install: _Install) -> float:
        """Estimate the seconds until one more call of `install` would start: those in front of it, on the places its tenant has now.

        0 where the tenant has none: then it is first in turn whenever a place is free, and nothing says when that will be.
        """
        if not tenant.in_flight:
            return 0.0
        others = tenant.waiting_installs - bool(install.waiters)
        return (len(install.waiters) + 1) * (others + 1) * install.hold / tenant.in_flight

    def _refusal(self, tenant: _Tenant, install: _Install) -> RefusalError:
        seconds = min(_MOST_RETRY_SECONDS, max(1, math.ceil(self._expected_wait(tenant, install))))
        own = tenant.in_flight >= self._tenant_cap or install.in_flight >= self._install_cap or not self._is_below_share(tenant)
        if own:
            detail = "Too many calls of this tenant or install are running; try again in a moment."
            return RefusalError(Reason.CONCURRENCY_LIMIT, detail, retry_after_seconds=seconds)
        return RefusalError(
            Reason.OVERLOADED, "The runner has no free place for this call; try again in a moment.", retry_after_seconds=seconds
        )

    # --- who is next ---------------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Start waiters, whoever has used least first, until none can start."""
        while self._waiting and (tenant := self._next()) is not None:
            install = tenant.turns.first()
            if install is None:
                message = "a tenant without a waiter that can start has a turn"
                raise RuntimeError(message)
            place, waiting = next(iter(install.waiters.items()))
            self._unqueue(place)
            # Whoever gave up and has not run since is passed over.
            if not waiting.done():
                self._start(place)
                waiting.set_result(None)
            self._file(tenant, install)

    def _next(self) -> _Tenant | None:
        """Return the tenant whose turn it is, or None where no waiter can start."""
        if self._in_flight >= self._limits.slots:
            return None
        first = self._turns.first()
        if self._is_open():
            crowding = self._crowding.first()
            return crowding if crowding is not None and (first is None or crowding.virtual < first.virtual) else first
        while first is not None and not self._is_below_share(first):
            # Its share has become smaller since it was filed.
            self._file(first)
            first = self._turns.first()
        return first

    def _file(self, tenant: _Tenant, install: _Install | None = None) -> None:
        """Put a tenant, and an install of it that has changed, where its waiters are found; or nowhere where none can start."""
        if install is not None:
            if install.waiters and install.in_flight < self._install_cap:
                tenant.turns.put(install)
            else:
                tenant.turns.remove(install)
        self._turns.remove(tenant)
        self._crowding.remove(tenant)
        if len(tenant.turns) and tenant.in_flight < self._tenant_cap:
            (self._turns if self._is_below_share(tenant) else self._crowding).put(tenant)

    def _unqueue(self, place: Place) -> None:
        tenant, install = place._tenant, place._install  # noqa: SLF001
        del install.waiters[place]
        tenant.waiting -= 1
        tenant.waiting_installs -= not install.waiters
        self._waiting -= 1

    # --- who is remembered ---------------------------------------------------------------------------------------------------------

    def _tenant(self, key: str) -> _Tenant:
        """Return a tenant, which must get a call or a waiter now."""
        tenant = self._tenants.get(key)
        if tenant is None:
            tenant = self._tenants[key] = _Tenant(key, self._weights.get(key, 1.0), self._now)
            self._weight += tenant.weight
        elif self._idle.pop(key, None) is not None:
            # Credit is not saved up; debt is kept while it is remembered.
            tenant.virtual = max(tenant.virtual, self._now)
        return tenant

    def _tidy(self, tenant: _Tenant, install: _Install) -> None:
        """Note who has neither a call nor a waiter any more."""
        if not install.in_flight and not install.waiters:
            tenant.note_idle(install)
        if not tenant.in_flight and not tenant.waiting:
            self._idle[tenant.key] = time.monotonic()

    def _forget_idle(self, now: float) -> None:
        while self._idle:
            key, since = next(iter(self._idle.items()))
            if now - since < REMEMBER_SECONDS:
                return
            del self._idle[key]
            # Whole weights add and subtract exactly; nobody being left clears the rest.
            self._weight = self._weight - self._tenants.pop(key).weight if len(self._tenants) > 1 else self._clear()

    def _clear(self) -> float:
        self._tenants.clear()
        return 0.0
