"""Warming never makes a request fail, and never piles up."""

from __future__ import annotations

import asyncio

import pytest

from gateway.routes.admin import warming
from gateway.routes.admin.warming import Warmer
from registry.domain.errors import Reason, RefusalError


class Runner:
    def __init__(self, *, refuses: bool = False, waits: asyncio.Event | None = None) -> None:
        self.refuses = refuses
        self.waits = waits
        self.asked: list[str] = []
        self.cancelled = 0

    async def warm(self, content_hash: str) -> object:
        self.asked.append(content_hash)
        if self.waits is not None:
            try:
                await self.waits.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.refuses:
            raise RefusalError(Reason.OVERLOADED, "no room")
        return None


async def test_ready() -> None:
    runner = Runner()
    assert await Warmer(runner).warm("sha256:a") == "ready"
    assert runner.asked == ["sha256:a"]


async def test_refused__failed() -> None:
    assert await Warmer(Runner(refuses=True)).warm("sha256:a") == "failed"


async def test_slow__pending_and_goes_on() -> None:
    compiled = asyncio.Event()
    warmer = Warmer(Runner(waits=compiled), wait_seconds=0.01)
    assert await warmer.warm("sha256:a") == "pending"
    assert len(warmer._running) == 1
    compiled.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*warmer._running)
    await asyncio.sleep(0)
    assert not warmer._running


async def test_caller_gone__goes_on() -> None:
    compiled = asyncio.Event()
    runner = Runner(waits=compiled)
    warmer = Warmer(runner)
    asking = asyncio.create_task(warmer.warm("sha256:a"))
    while not runner.asked:  # noqa: ASYNC110 - one turn of the loop
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert runner.cancelled == 0
    await warmer.aclose()
    assert runner.cancelled == 1


async def test_too_many__not_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "_MAX_RUNNING", 1)
    runner = Runner(waits=asyncio.Event())
    warmer = Warmer(runner, wait_seconds=0.01)
    assert await warmer.warm("sha256:a") == "pending"
    assert await warmer.warm("sha256:b") == "failed"
    assert runner.asked == ["sha256:a"]
    await warmer.aclose()
