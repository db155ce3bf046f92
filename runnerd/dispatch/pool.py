"""The workers of one daemon: forked on demand, one tenant each at a time, replaced when they die, let go when idle (DESIGN §3, T4).

The attack it stops: two tenants in one worker at one moment, so that an escape from one guest reaches the other's calls. A worker's
isolation key (tenant, or tenant and install) changes only while it holds no call at all; with `dedicated` it never changes.

The pool starts at `floor`, grows while keys wait, shrinks when idle and never exceeds `ceiling`. A tenant is spread over as many workers
as there are CPUs, so that one client can use the whole machine.

`renew` puts a new generation of workers in the place of the old one: the new ones are started and greeted first, then new calls go to
them only; each old worker leaves when its last call has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

import structlog

from registry.domain.errors import Reason, RefusalError
from runnerd.dispatch.breaker import CircuitBreaker
from runnerd.dispatch.connection import ConnectionSettings, UnusableWorkerError, WorkerConnection, WorkerProcess
from runnerd.dispatch.host_calls import HostCallDesk
from runnerd.dispatch.memory import MemoryLimits, resident_bytes, tenant_of, too_much
from runnerd.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses between failed starts; a dead worker is replaced within a second all the same."""


class Isolation(StrEnum):
    """Whose calls may follow each other in one worker."""

    TENANT = "tenant"
    INSTALL = "install"
    DEDICATED = "dedicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Sizes and times of a pool."""

    floor: int
    ceiling: int
    slots: int
    """Calls that one worker holds."""
    spread: int
    """Workers over which one key is spread before its calls share one; the CPUs of this daemon."""
    isolation: Isolation = Isolation.TENANT
    mandatory_hardening: frozenset[str] = frozenset()
    memory: MemoryLimits | None = None
    """What the workers may hold; None leaves that to the kernel."""
    memory_seconds: float = 0.5
    """How often it is looked at."""
    idle_seconds: float = 60.0
    max_calls: int = 20_000
    """Calls after which a worker is replaced, so that what earlier calls left behind ages out (T41)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """The pool, as of now."""

    workers: int
    slots: int
    in_use: int
    hardening: dict[str, bool]


@dataclass(slots=True, eq=False)
class _Waiter:
    key: str
    worker: asyncio.Future[WorkerConnection]


class WorkerPool:
    """Workers, and who waits for one. Belongs to one event loop.

    Args:
        fork: makes one worker process.
        desk: answers host calls.
        breaker: hears of workers that ended by themselves.
        settings: sizes and times.
        connection: how to deal with one worker.
        metrics: counts workers that end.
    """

    def __init__(  # noqa: PLR0913 - the composition root hands over its parts once
        self,
        fork: Callable[[], Awaitable[WorkerProcess]],
        *,
        desk: HostCallDesk,
        breaker: CircuitBreaker,
        settings: PoolSettings,
        connection: ConnectionSettings,
        metrics: Metrics,
    ) -> None:
        self._fork = fork
        self._desk = desk
        self._breaker = breaker
        self._settings = settings
        self._connection = connection
        self._metrics = metrics
        self._generation = 0
        self._workers: list[WorkerConnection] = []
        self._reserved: dict[WorkerConnection, int] = {}
        """Slots given to callers that have not yet sent their call, and calls that run."""
        self._ending: set[WorkerConnection] = set()
        self._gone = asyncio.Event()
        """Set whenever a process was reaped, or was made or not made after all."""
        self._waiters: deque[_Waiter] = deque()
        self._promised: dict[WorkerConnection, str] = {}
        """Busy workers that go to another key as soon as they hold nothing; they take no new call until then."""
        self._starting = 0
        """Workers of the generation that takes calls that are on their way."""
        self._renewing = 0
        """Workers of the generation that comes."""
        self._forking: Counter[int] = Counter()
        """Workers by generation that are being made and of which nothing else is known yet."""
        self._failures = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Start the floor's workers.

        Raises:
            UnusableWorkerError: the first worker cannot be used; the daemon must not run (for example, mandatory hardening is missing).
        """
        await self._start_one(self._fork, self._generation)
        self._grow(self._settings.floor - 1)
        self._background(self._tend())
        if self._settings.memory is not None:
            self._background(self._watch_memory(self._settings.memory))

    def state(self) -> PoolState:
        """Describe the pool."""
        hardening: dict[str, bool] = {}
        for worker in self._workers:
            for step, applied in worker.hardening.items():
                hardening[step] = hardening.get(step, True) and applied
        return PoolState(
            workers=len(self._workers),
            slots=sum(worker.slots for worker in self._workers),
            in_use=sum(self._load(worker) for worker in self._workers),
            hardening=hardening,
        )

    @property
    def workers(self) -> tuple[WorkerConnection, ...]:
        """The workers that take calls."""
        return tuple(self._workers)

    @property
    def generation(self) -> int:
        """Number of the generation that takes calls; grows by one with each `renew`."""
        return self._generation

    async def renew(self, fork: Callable[[], Awaitable[WorkerProcess]]) -> None:
        """Let workers made by `fork` take every call from now on. Calls that run end where they are. One at a time.

        For a moment there are more workers than usual, but above the ceiling at most one: where one is above it still, since the renewal
        before, this waits until it has left.

        Args:
            fork: makes one worker process; what made the generation before must live until `wait_left` returns.

        Raises:
            UnusableWorkerError: a new worker cannot be used. Everything is as before.
            OSError: none could be made. Everything is as before.
        """
        coming = self._generation + 1
        while self._occupied > self._settings.ceiling:
            await self._somebody_gone()
        count = max(1, min(self._settings.floor, self._settings.ceiling - self._occupied - self._starting))
        self._renewing = count
        try:
            results = await asyncio.gather(*(self._start_one(fork, coming) for _ in range(count)), return_exceptions=True)
        finally:
            self._renewing = 0
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures or self._closed:
            for worker in [worker for worker in self._workers if worker.generation == coming]:
                worker.retire("generation")
            # Whoever waits was not given a worker while these were on their way.
            self._assign()
            raise failures[0] if failures else UnusableWorkerError("the pool is closed")
        self._fork, self._generation, self._failures = fork, coming, 0
        for worker in [worker for worker in self._workers if worker.generation < coming]:
            self._promised.pop(worker, None)
            self._let_go_idle(worker, "generation")
        self._replace()
        self._assign()

    async def wait_left(self, generation: int) -> None:
        """Return when no process of `generation` is left."""
        while self._forking[generation] or any(worker.generation == generation for worker in (*self._workers, *self._ending)):
            await self._somebody_gone()

    async def _somebody_gone(self) -> None:
        self._gone.clear()
        await self._gone.wait()

    @asynccontextmanager
    async def worker_for(self, *, tenant_id: str, install_id: str, deadline: float, apart: str = "") -> AsyncIterator[WorkerConnection]:
        """Hold a slot in a worker for one call of a tenant.

        Args:
            tenant_id: whose call.
            install_id: of which install.
            deadline: on the clock of `time.monotonic()`; waiting ends there.
            apart: where set, the worker holds only calls that give the same here.

        Raises:
            RefusalError: OVERLOADED: no worker became free before `deadline`.
        """
        key = tenant_id if self._settings.isolation is Isolation.TENANT else f"{tenant_id}/{install_id}"
        if apart:
            key = f"{key}/apart/{apart}"
        worker = await self._acquire(key, deadline)
        while worker.is_orphaned:
            # It ends with what made it, perhaps before it reads another word; a call that was sent counts as started, and is not run again.
            worker.end("zygote_died")
            self._give_back(worker)
            worker = await self._acquire(key, deadline)
        try:
            yield worker
        finally:
            self._give_back(worker)

    async def aclose(self) -> None:
        """End every worker and wait until all were reaped. Waiting callers are refused."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiter in self._waiters:
            if not waiter.worker.done():
                waiter.worker.set_exception(RefusalError(Reason.OVERLOADED, "The runner is shutting down; try another."))
        self._waiters.clear()
        workers = [*self._workers, *self._ending]
        await asyncio.gather(*(worker.aclose() for worker in workers))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- giving workers to calls ---------------------------------------------------------------------------------------------------

    async def _acquire(self, key: str, deadline: float) -> WorkerConnection:
        worker = None if self._waiters else self._pick(key)
        if worker is not None:
            return self._take(worker, key)
        if self._closed:
            raise RefusalError(Reason.OVERLOADED, "The runner is shutting down; try another.")
        waiter = _Waiter(key, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._assign()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await waiter.worker
        except BaseException as error:
            if waiter.worker.done() and not waiter.worker.cancelled() and waiter.worker.exception() is None:
                # Given in the very moment in which the wait ended.
                self._give_back(waiter.worker.result())
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise RefusalError(Reason.OVERLOADED, "No worker became free for this call in time; try again in a moment.") from error
            raise

    def _pick(self, key: str) -> WorkerConnection | None:
        """Choose a worker for `key`, or None where it has to wait for one.

        SECURITY: a worker of another key is chosen only while it holds no call and no reservation.
        """
        own = [worker for worker in self._open_to(key) if worker.key == key and self._has_room(worker)]
        best = min(own, key=self._load, default=None)
        if best is not None and (self._load(best) == 0 or len(own) >= self._settings.spread):
            return best
        free = self._free_worker(key)
        if free is not None:
            return free
        if best is None or self._can_grow():
            # One more worker is on its way, or is needed; a call that can run now need not wait for it.
            self._grow(1)
        return best

    def _open_to(self, key: str) -> list[WorkerConnection]:
        return [worker for worker in self._current if worker.is_usable and self._promised.get(worker, key) == key]

    @property
    def _current(self) -> list[WorkerConnection]:
        """Workers of the generation that takes calls: neither those that are leaving nor those that are not yet in."""
        return [worker for worker in self._workers if worker.generation == self._generation]

    def _free_worker(self, key: str) -> WorkerConnection | None:
        """Return a worker that holds nothing: a fresh one, or, unless dedicated, one that served another key."""
        idle = [worker for worker in self._open_to(key) if self._load(worker) == 0]
        fresh = next((worker for worker in idle if not worker.key), None)
        if fresh is not None:
            return fresh
        # The one that was idle longest: whoever used another a moment ago may come back.
        oldest = min(idle, key=lambda worker: worker.idle_since, default=None)
        if oldest is None or self._settings.isolation is not Isolation.DEDICATED:
            return oldest
        # Not now: letting it go looks for work for others, and that is what is being done here.
        asyncio.get_running_loop().call_soon(self._let_go_idle, oldest, "isolation")
        return None

    def _has_room(self, worker: WorkerConnection) -> bool:
        return self._load(worker) < min(worker.slots, self._settings.slots)

    def _load(self, worker: WorkerConnection) -> int:
        # Calls that nobody waits for any more still run there until they end.
        return self._reserved.get(worker, 0) + worker.orphans

    def _take(self, worker: WorkerConnection, key: str) -> WorkerConnection:
        worker.key = key
        self._promised.pop(worker, None)
        self._reserved[worker] = self._reserved.get(worker, 0) + 1
        return worker

    def _give_back(self, worker: WorkerConnection) -> None:
        left = self._reserved.get(worker, 0) - 1
        if left > 0:
            self._reserved[worker] = left
        else:
            self._reserved.pop(worker, None)
        self._changed(worker)

    def _changed(self, worker: WorkerConnection) -> None:
        if worker.has_ended:
            self._remove(worker)
        elif worker.generation < self._generation:
            self._let_go_idle(worker, "generation")
        elif worker.calls_started >= self._settings.max_calls:
            self._let_go_idle(worker, "recycled")
        self._assign()

    def _assign(self) -> None:
        """Give workers to those who wait, first come first, skipping keys for which there is none."""
        if not self._waiters:
            return
        left: deque[_Waiter] = deque()
        hopeless: set[str] = set()
        for waiter in list(self._waiters):
            if waiter.worker.done():
                continue
            worker = None if waiter.key in hopeless else self._pick(waiter.key)
            if worker is None:
                hopeless.add(waiter.key)
                left.append(waiter)
            else:
                waiter.worker.set_result(self._take(worker, waiter.key))
        self._waiters = left
        self._promise(hopeless)

    def _promise(self, hopeless: set[str]) -> None:
        """Promise a busy worker to each key that cannot get one otherwise.

        Without it a key whose calls overlap would keep its workers for ever, and the others' calls would wait until they time out.
        """
        for worker, key in list(self._promised.items()):
            if key not in hopeless:
                del self._promised[worker]
        if self._can_grow() or self._starting:
            return
        for key in hopeless - set(self._promised.values()):
            candidates = [worker for worker in self._current if worker not in self._promised and worker.key != key]
            if not candidates:
                return
            # By tenant: keys that are kept apart are no reason to take from somebody else.
            share = Counter(tenant_of(worker.key) for worker in candidates)
            self._promised[max(candidates, key=lambda worker: (share[tenant_of(worker.key)], -self._load(worker)))] = key

    # --- workers that come and go --------------------------------------------------------------------------------------------------

    def _can_grow(self) -> bool:
        return not self._closed and self._occupied + self._starting + self._renewing < self._settings.ceiling

    @property
    def _occupied(self) -> int:
        return len(self._workers) + len(self._ending)

    def _grow(self, count: int) -> None:
        """Start workers in the background, as far as the ceiling and the demand go."""
        wanted = max(len(self._waiters) + 1, count)
        for _ in range(count):
            if not self._can_grow() or self._starting >= wanted:
                return
            self._starting += 1
            self._background(self._start_in_background())

    async def _start_in_background(self) -> None:
        try:
            await asyncio.sleep(0 if not self._failures else _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS)) - 1])
            await self._start_one(self._fork, self._generation)
            self._failures = 0
        except (UnusableWorkerError, OSError) as error:
            self._failures += 1
            _log.error("worker_not_started", detail=str(error), failures=self._failures)
        finally:
            self._starting -= 1
            if not self._closed:
                self._replace()
                self._assign()

    async def _start_one(self, fork: Callable[[], Awaitable[WorkerProcess]], generation: int) -> None:
        self._forking[generation] += 1
        try:
            process = await fork()
        finally:
            self._forking[generation] -= 1
            self._gone.set()
        worker = WorkerConnection(process, desk=self._desk, settings=self._connection, on_change=self._changed)
        worker.generation = generation
        self._ending.add(worker)
        try:
            await worker.greet(mandatory_hardening=self._settings.mandatory_hardening)
        except UnusableWorkerError:
            self._metrics.worker_ended(worker.end_cause)
            self._background(self._see_off(worker))
            raise
        except asyncio.CancelledError:
            worker.end("shutdown")
            raise
        self._ending.discard(worker)
        self._workers.append(worker)
        self._publish()
        # A generation may have come while it started.
        self._changed(worker)

    def _replace(self) -> None:
        """Keep the floor."""
        missing = self._settings.floor - len(self._current) - self._starting
        if missing > 0:
            self._grow(missing)

    def _let_go_idle(self, worker: WorkerConnection, cause: str) -> None:
        if self._load(worker) == 0:
            worker.retire(cause)

    def _remove(self, worker: WorkerConnection) -> None:
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        self._promised.pop(worker, None)
        self._reserved.pop(worker, None)
        self._metrics.worker_ended(worker.end_cause)
        if worker.suspects:
            self._breaker.worker_died(worker.suspects)
        self._ending.add(worker)
        self._background(self._see_off(worker))
        self._publish()
        if not self._closed:
            self._replace()

    async def _see_off(self, worker: WorkerConnection) -> None:
        await worker.wait_reaped()
        self._ending.discard(worker)
        self._gone.set()
        if not self._closed:
            # Where the pool was full, there is room only now.
            self._replace()
        self._assign()

    async def _tend(self) -> None:
        """Let idle workers go, once in a while."""
        while True:
            await asyncio.sleep(max(0.05, self._settings.idle_seconds / 4))
            before = time.monotonic() - self._settings.idle_seconds
            current = self._current
            idle = [worker for worker in current if self._load(worker) == 0 and worker.idle_since < before]
            for worker in idle[: max(0, len(current) - self._settings.floor)]:
                self._let_go_idle(worker, "idle")

    async def _watch_memory(self, limits: MemoryLimits) -> None:
        """End workers that hold too much, before the kernel has to choose."""
        blind = False
        while True:
            try:
                self._look_at_memory(limits)
                blind = False
            except OSError as error:
                # No descriptor left, for example. Said once, tried again at every turn.
                if not blind:
                    _log.error("memory_not_watched", detail=str(error))
                blind = True
            await asyncio.sleep(self._settings.memory_seconds)

    def _look_at_memory(self, limits: MemoryLimits) -> None:
        held = {worker: resident_bytes(worker.pid) for worker in self._workers}
        self._metrics.memory(sum(held.values()), limits.budget_bytes)
        for worker, cause in too_much(held.items(), limits).items():
            _log.warning("worker_memory", worker_pid=worker.pid, bytes=held[worker], isolation_key=worker.key, cause=cause)
            worker.end(cause)

    def _publish(self) -> None:
        state = self.state()
        self._metrics.hardening(state.hardening)

    def _background(self, work: Coroutine[None, None, None]) -> None:
        # An empty context: a worker outlives the call that asked for it, and its log lines are not that call's.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
