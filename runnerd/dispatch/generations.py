"""Generations of workers: SIGHUP puts new ones, from a new zygote, in the place of those that run, and no call notices (T39).

A zygote has imported the engine and the worker's code once, and looked at the machine once; its workers are what it was. So whatever is
new since then (the engine's library, code of the same build, the CPUs that are ours) needs another zygote. What must not change is what the
daemon itself holds: its build and its engine's fingerprint, under which artifacts are compiled and signed. A worker of another build or
fingerprint is refused by its Hello, the old generation goes on, and the log says why; such a change needs a new daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, Self

import structlog

from runnerd.dispatch.connection import UnusableWorkerError, WorkerProcess
from runnerd.dispatch.pool import WorkerPool
from runnerd.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class Factory(Protocol):
    """Makes workers (`runnerd.dispatch.workers.WorkerFactory`)."""

    async def fork(self) -> WorkerProcess:
        """Make one worker, or raise UnusableWorkerError, or OSError where the machine has nothing left for it."""

    async def aclose(self) -> None:
        """End every worker that still runs, and what made them."""


class Generations:
    """What makes the workers of a pool, replaceable. Made by `start`, ended by `aclose` after the pool.

    Args:
        make: starts a factory as the machine is now.
        factory: the first one.
        metrics: counts generations.
    """

    def __init__(self, make: Callable[[], Awaitable[Factory]], factory: Factory, metrics: Metrics) -> None:
        self._make = make
        self._factory = factory
        self._metrics = metrics
        self._leaving: dict[asyncio.Task[None], Factory] = {}
        self._one = asyncio.Lock()

    @classmethod
    async def start(cls, make: Callable[[], Awaitable[Factory]], metrics: Metrics) -> Self:
        """Start the first generation's factory.

        Raises:
            UnusableWorkerError: it does not start.
        """
        return cls(make, await make(), metrics)

    async def fork(self) -> WorkerProcess:
        """Make a worker of the first generation; later ones bring their own."""
        return await self._factory.fork()

    async def renew(self, pool: WorkerPool) -> bool:
        """Replace the pool's workers; calls that run end where they are. Returns when new calls go to new workers.

        Returns:
            False where the new generation cannot be used: then the old one goes on.
        """
        async with self._one:
            leaving = pool.generation
            try:
                await self._renew(pool)
            except (UnusableWorkerError, OSError) as error:
                # Without a descriptor, memory or an interpreter on disk there is no zygote: for now.
                self._metrics.generation("refused")
                _log.error("generation_refused", detail=str(error), generation=leaving)
                return False
            self._metrics.generation("started")
            _log.info("generation_started", generation=pool.generation)
            return True

    async def _renew(self, pool: WorkerPool) -> None:
        leaving = pool.generation
        factory = await self._make()
        try:
            await pool.renew(factory.fork)
        except BaseException:
            await factory.aclose()
            raise
        old, self._factory = self._factory, factory
        task = asyncio.get_running_loop().create_task(self._see_off(pool, leaving, old))
        self._leaving[task] = old
        task.add_done_callback(self._leaving.pop)

    async def _see_off(self, pool: WorkerPool, generation: int, factory: Factory) -> None:
        await pool.wait_left(generation)
        await factory.aclose()
        _log.info("generation_left", generation=generation)

    async def aclose(self) -> None:
        """End every factory."""
        leaving = dict(self._leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        await asyncio.gather(self._factory.aclose(), *(factory.aclose() for factory in leaving.values()))
