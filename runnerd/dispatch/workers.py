"""Where the pool's workers come from: the zygote, with each worker's CPU chosen in turn."""

from __future__ import annotations

import itertools
from typing import ClassVar, Self

from registry.domain.limits import MIB
from runnerd.dispatch.connection import UnusableWorkerError, WorkerProcess
from runnerd.dispatch.cpus import Cpus
from runnerd.dispatch.zygote import Zygote, ZygoteError
from runnerd.worker.hardening import MANDATORY
from runnerd.worker.settings import WorkerConfig


class WorkerFactory:
    """Forks workers that are all alike but for their CPU. Made by `start`, ended by `aclose`."""

    mandatory_hardening: ClassVar[frozenset[str]] = frozenset(step.value for step in MANDATORY)
    """Names of the steps that every worker must have taken."""

    def __init__(self, zygote: Zygote, *, slots: int, cpus: Cpus, memory_bytes: int, require_hardening: bool) -> None:
        """Use `start` instead."""
        self._zygote = zygote
        self._slots = slots
        self._memory_bytes = memory_bytes
        self._require_hardening = require_hardening
        self._cpus = itertools.cycle(cpus.pin_to or (None,))

    @classmethod
    async def start(cls, *, slots: int, cpus: Cpus, memory_bytes: int = 256 * MIB, require_hardening: bool = True) -> Self:
        """Start the zygote.

        Args:
            slots: calls that one worker holds.
            cpus: to pin workers to, in turn.
            memory_bytes: linear memory that one call has usually.
            require_hardening: a worker without a mandatory step ends itself.

        Raises:
            UnusableWorkerError: the zygote does not start.
        """
        try:
            zygote = await Zygote.start()
        except ZygoteError as error:
            raise UnusableWorkerError(str(error)) from error
        return cls(zygote, slots=slots, cpus=cpus, memory_bytes=memory_bytes, require_hardening=require_hardening)

    async def fork(self) -> WorkerProcess:
        """Make one worker.

        Raises:
            UnusableWorkerError: none could be made.
        """
        config = WorkerConfig(
            slots=self._slots, cpu=next(self._cpus), memory_bytes=self._memory_bytes, require_hardening=self._require_hardening
        )
        try:
            return await self._zygote.fork_worker(config)
        except ZygoteError as error:
            raise UnusableWorkerError(str(error)) from error

    async def aclose(self) -> None:
        """End the zygote and every worker that still runs."""
        await self._zygote.aclose()
