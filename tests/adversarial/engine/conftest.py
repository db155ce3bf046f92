"""Hostile guests run in real workers, on each call path."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from runnerd.dispatch.zygote import Zygote
from runnerd.worker.settings import WorkerConfig
from tests.fakes.worker_driver import WorkerDriver

CALL_PATHS = ("bridge", "ordinary")
"""How a call may reach its guest. What stands in the corpus holds on each."""


@pytest.fixture(params=CALL_PATHS)
def call_path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def worker(call_path: str) -> AsyncIterator[WorkerDriver]:
    zygote = await Zygote.start()
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig()), bridge=call_path == "bridge") as driver:
        yield driver
    await zygote.aclose()
