"""Who may run now: concurrency by tenant and install, fair and bounded waiting (DESIGN §7).

The attack it stops: one tenant fills every slot, or an endless queue, with calls that take long. A tenant holds at most a quarter of all
slots (at least 2), the last quarter is for tenants below their fair share, waiting is bounded in number and by each call's own
deadline, and waiters are served tenant by tenant in turn.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from registry.domain.errors import Reason, RefusalError


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Bounds of one daemon."""

    slots: int
    """Calls in flight, all tenants together."""
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


@dataclass(slots=True, eq=False)
class _Waiter:
    tenant: str
    install: str
    admitted: asyncio.Future[None]


class Admission:
    """Counts calls in flight and keeps the rest waiting. Belongs to one event loop."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._in_flight = 0
        self._tenants: Counter[str] = Counter()
        self._installs: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._waiting_total = 0

    @property
    def in_flight(self) -> int:
        """Calls admitted and not ended."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return self._waiting_total

    @asynccontextmanager
    async def enter(self, tenant_id: str, install_id: str, *, deadline: float) -> AsyncIterator[None]:
        """Hold a place while the block runs.

        Args:
            tenant_id: whose call.
            install_id: of which install.
            deadline: on the clock of `time.monotonic()`; waiting ends there.

        Raises:
            RefusalError: CONCURRENCY_LIMIT where the tenant itself has too much running, OVERLOADED where everybody together has.
        """
        # Nobody is overtaken: whoever waits cannot start now, or `_wake` would have let them.
        if self._may_start(tenant_id, install_id):
            self._take(tenant_id, install_id)
        else:
            await self._wait(tenant_id, install_id, deadline)
        try:
            yield
        finally:
            self._release(tenant_id, install_id)

    async def _wait(self, tenant_id: str, install_id: str, deadline: float) -> None:
        queue = self._waiting.get(tenant_id)
        if self._waiting_total >= self._limits.waiting or (queue is not None and len(queue) >= self._limits.waiting_per_tenant):
            raise self._refusal(tenant_id, install_id)
        loop = asyncio.get_running_loop()
        waiter = _Waiter(tenant_id, install_id, loop.create_future())
        self._waiting.setdefault(tenant_id, deque()).append(waiter)
        self._waiting_total += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await waiter.admitted
        except BaseException as error:
            # Admitted in the very moment in which the wait ended: the place must go to the next.
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self._release(tenant_id, install_id)
            else:
                self._forget(waiter)
            if isinstance(error, TimeoutError):
                raise self._refusal(tenant_id, install_id) from error
            raise

    def _forget(self, waiter: _Waiter) -> None:
        queue = self._waiting.get(waiter.tenant)
        if queue is None or waiter not in queue:
            return
        queue.remove(waiter)
        self._waiting_total -= 1
        if not queue:
            del self._waiting[waiter.tenant]

    def _refusal(self, tenant_id: str, install_id: str) -> RefusalError:
        if self._tenants[tenant_id] >= self._limits.tenant_cap or self._installs[install_id] >= self._limits.install_cap:
            return RefusalError(Reason.CONCURRENCY_LIMIT, "Too many calls of this tenant or install are running; try again in a moment.")
        return RefusalError(Reason.OVERLOADED, "The runner has no free place for this call; try again in a moment.")

    def _may_start(self, tenant_id: str, install_id: str) -> bool:
        limits = self._limits
        running = self._tenants[tenant_id]
        if self._in_flight >= limits.slots or running >= limits.tenant_cap or self._installs[install_id] >= limits.install_cap:
            return False
        if self._in_flight < limits.open_slots:
            return True
        active = len(+self._tenants | Counter({tenant_id: 1}))
        return running < max(1, limits.slots // active)

    def _take(self, tenant_id: str, install_id: str) -> None:
        self._in_flight += 1
        self._tenants[tenant_id] += 1
        self._installs[install_id] += 1

    def _release(self, tenant_id: str, install_id: str) -> None:
        self._in_flight -= 1
        for counter, key in ((self._tenants, tenant_id), (self._installs, install_id)):
            counter[key] -= 1
            if counter[key] <= 0:
                del counter[key]
        self._wake()

    def _wake(self) -> None:
        """Admit waiters, one tenant after the other, until none can start."""
        progress = True
        while progress and self._waiting and self._in_flight < self._limits.slots:
            progress = False
            for tenant in list(self._waiting):
                waiter = self._startable(tenant)
                if waiter is None:
                    continue
                self._forget(waiter)
                if tenant in self._waiting:
                    self._waiting.move_to_end(tenant)
                self._take(waiter.tenant, waiter.install)
                waiter.admitted.set_result(None)
                progress = True

    def _startable(self, tenant: str) -> _Waiter | None:
        """Return the first waiter of `tenant` whose install has room."""
        for waiter in self._waiting[tenant]:
            if not waiter.admitted.done() and self._may_start(tenant, waiter.install):
                return waiter
        return None
