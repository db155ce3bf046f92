from __future__ import annotations

import asyncio

import pytest

from registry.flights import SingleFlight, StillRunningError


class Work:
    def __init__(self) -> None:
        self.started = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.started += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.started


async def test_many_callers_share_one_run() -> None:
    flights, work = SingleFlight[str, int](), Work()
    callers = [asyncio.create_task(flights.run("key", work)) for _ in range(20)]
    await asyncio.sleep(0)
    work.gate.set()
    assert await asyncio.gather(*callers) == [1] * 20
    assert await flights.run("key", work) == 2


async def test_other_keys_run_beside_it() -> None:
    flights, slow, fast = SingleFlight[str, int](), Work(), Work()
    fast.gate.set()
    waiting = asyncio.create_task(flights.run("slow", slow))
    assert await flights.run("fast", fast) == 1
    slow.gate.set()
    await waiting


async def test_who_cannot_wait_is_told_and_the_work_goes_on() -> None:
    flights, work = SingleFlight[str, int](), Work()
    with pytest.raises(StillRunningError):
        await flights.run("key", work, wait_seconds=0.01)
    with pytest.raises(StillRunningError):
        await flights.run("key", work, wait_seconds=0)
    work.gate.set()
    assert await flights.run("key", work) == 1


async def test_a_cancelled_caller_does_not_stop_the_others() -> None:
    flights, work = SingleFlight[str, int](), Work()
    first, second = (asyncio.create_task(flights.run("key", work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    work.gate.set()
    assert await second == 1
    assert first.cancelled()


async def test_a_failure_reaches_everybody_and_is_not_kept() -> None:
    flights, work = SingleFlight[str, int](), Work()
    work.error = KeyError("x")
    work.gate.set()
    results = await asyncio.gather(*(flights.run("key", work) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [KeyError] * 3
    work.error = None
    assert await flights.run("key", work) == 2


async def test_a_failure_that_nobody_waits_for_is_silent() -> None:
    flights, work = SingleFlight[str, int](), Work()
    work.error = KeyError("x")
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    with pytest.raises(StillRunningError):
        await flights.run("key", work, wait_seconds=0)
    work.gate.set()
    await asyncio.sleep(0.01)
    assert complaints == []


async def test_closing_ends_what_runs() -> None:
    flights, work = SingleFlight[str, int](), Work()
    caller = asyncio.create_task(flights.run("key", work))
    await asyncio.sleep(0)
    await flights.aclose()
    with pytest.raises(asyncio.CancelledError):
        await caller
