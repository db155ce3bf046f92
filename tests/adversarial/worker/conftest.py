"""A zygote and a worker for each test; nothing is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from runnerd.dispatch.zygote import Zygote
from runnerd.worker.settings import WorkerConfig
from tests.fakes.worker_driver import WorkerDriver


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    started = await Zygote.start()
    yield started
    await started.aclose()


@pytest.fixture
async def worker(zygote: Zygote) -> AsyncIterator[WorkerDriver]:
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig())) as driver:
        yield driver
