"""Where the pool's workers come from: the zygote, with each worker's CPU chosen in turn."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import ClassVar, Self

from runnerd.dispatch.connection import UnusableWorkerError, WorkerProcess
from runnerd.dispatch.cpus import Cpus
from runnerd.dispatch.zygote import Zygote, ZygoteError
from runnerd.worker.hardening import MANDATORY
from runnerd.worker.settings import WorkerConfig


class WorkerFactory:
    """Forks workers that are all alike but for their CPU. Made by `start`, ended by `aclose`."""

    mandatory_hardening: ClassVar[frozenset[str]] = frozenset(step.value for step in MANDATORY)
    """Names of the steps that every worker must have taken."""

    def __init__(self, zygote: Zygote, config: WorkerConfig, cpus: Cpus) -> None:
        """Use `start` instead."""
        self._zygote = zygote
        self._config = config
        self._cpus = itertools.cycle(cpus.pin_to or (None,))

    @classmethod
    async def start(cls, config: WorkerConfig, *, cpus: Cpus) -> Self:
        """Start the zygote.

        Args:
            config: of every worker; its CPU is chosen here.
            cpus: to pin workers to, in turn.

        Raises:
            UnusableWorkerError: the zygote does not start.
        """
        try:
            zygote = await Zygote.start()
        except ZygoteError as error:
            raise UnusableWorkerError(str(error)) from error
        return cls(zygote, config, cpus)

    async def fork(self) -> WorkerProcess:
        """Make one worker.

        Raises:
            UnusableWorkerError: none could be made.
        """
        try:
            return await self._zygote.fork_worker(replace(self._config, cpu=next(self._cpus)))
        except ZygoteError as error:
            raise UnusableWorkerError(str(error)) from error

    async def aclose(self) -> None:
        """End the zygote and every worker that still runs."""
        await self._zygote.aclose()
