"""New generations of workers over scripted ones: what new calls get, what running calls keep, and what a refused generation leaves."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from runnerd.dispatch.connection import UnusableWorkerError, WorkerProcess
from runnerd.dispatch.generations import Generations
from runnerd.dispatch.outcome import Completed
from runnerd.dispatch.request import ExecutionResult
from tests.fakes.dispatch_kit import OTHER_TENANT, POOL, TENANT, Kit, dispatching, eventually, make_request
from tests.fakes.fake_worker import FakeWorkerProcess, WorkerEnd, scripted

Fork = Callable[[], Awaitable[FakeWorkerProcess]]


class MemoryFactory:
    """Scripted workers; knows whether it was closed."""

    def __init__(self, fork: Fork) -> None:
        self._fork = fork
        self.closed = False

    async def fork(self) -> WorkerProcess:
        return await self._fork()

    async def aclose(self) -> None:
        self.closed = True


class Factories:
    """Factories in the order in which they are asked for."""

    def __init__(self, *forks: Fork) -> None:
        self.made = [MemoryFactory(fork) for fork in forks]
        self._left = list(self.made)

    async def __call__(self) -> MemoryFactory:
        if not self._left:
            message = "no zygote started"
            raise UnusableWorkerError(message)
        return self._left.pop(0)


def answering(text: bytes, *, gate: asyncio.Event | None = None, **changes: Any) -> Fork:
    """Return a fork function of workers that answer `text`, after `gate`."""

    async def script(worker: WorkerEnd) -> None:
        await worker.greet(**changes)
        while True:
            call_id, _ = await worker.next_start()
            if gate is not None:
                await gate.wait()
            await worker.complete(call_id, body=text)

    return scripted(then=script)[0]


async def execute(kit: Kit, tenant: Any = TENANT) -> ExecutionResult:
    return await kit.executor.execute(kit.caller, make_request(tenant_id=tenant), deadline=None)


async def body(kit: Kit, tenant: Any = TENANT) -> bytes | None:
    outcome = (await execute(kit, tenant)).outcome
    assert isinstance(outcome, Completed)
    return outcome.body


async def test_renew__new_calls_go_to_new_workers_and_running_ones_end_where_they_are() -> None:
    gate = asyncio.Event()
    factories = Factories(answering(b"old", gate=gate), answering(b"new"))
    async with dispatching((await factories()).fork, pool=replace(POOL, floor=2)) as kit:
        generations = Generations(factories, factories.made[0], kit.metrics)
        running = asyncio.create_task(body(kit))
        await eventually(lambda: kit.pool.state().in_use == 1)
        assert await generations.renew(kit.pool)
        assert await body(kit) == b"new"
        assert await body(kit, OTHER_TENANT) == b"new"
        assert not running.done()
        assert not factories.made[0].closed, "its workers would die with it"
        gate.set()
        assert await running == b"old"
        await eventually(lambda: factories.made[0].closed)
        assert {worker.generation for worker in kit.pool.workers} == {1}
        assert kit.metric("worker_restarts_total", {"cause": "generation"}) == 2
        assert kit.metric("worker_generations_total", {"result": "started"}) == 1
        await generations.aclose()
    assert factories.made[1].closed


@pytest.mark.parametrize("changes", [{"engine_fingerprint": "0" * 64}, {"build": "another"}])
async def test_generation_of_another_engine_or_build__is_refused_and_the_old_one_goes_on(changes: dict[str, Any]) -> None:
    factories = Factories(answering(b"old"), answering(b"new", **changes))
    async with dispatching((await factories()).fork, pool=replace(POOL, floor=2)) as kit:
        generations = Generations(factories, factories.made[0], kit.metrics)
        await eventually(lambda: len(kit.pool.workers) == 2)
        before = kit.pool.workers
        assert not await generations.renew(kit.pool)
        assert await body(kit) == b"old"
        assert set(kit.pool.workers) == set(before)
        assert (factories.made[0].closed, factories.made[1].closed) == (False, True)
        assert kit.metric("worker_generations_total", {"result": "refused"}) == 1
        # Nor where not even a zygote starts; and the daemon can still be renewed afterwards.
        assert not await generations.renew(kit.pool)
        factories._left.append(MemoryFactory(answering(b"newest")))
        assert await generations.renew(kit.pool)
        assert await body(kit) == b"newest"
        await generations.aclose()


async def test_first_new_worker_good_and_second_bad__none_stays() -> None:
    good = answering(b"new")
    bad = answering(b"new", build="another")
    forks = iter((good, bad))

    async def mixed() -> FakeWorkerProcess:
        return await next(forks)()

    factories = Factories(answering(b"old"), mixed)
    async with dispatching((await factories()).fork, pool=replace(POOL, floor=2)) as kit:
        generations = Generations(factories, factories.made[0], kit.metrics)
        await eventually(lambda: len(kit.pool.workers) == 2)
        assert not await generations.renew(kit.pool)
        assert await body(kit) == b"old"
        assert {worker.generation for worker in kit.pool.workers} == {0}
        await generations.aclose()


async def test_full_pool__renews_all_the_same_with_one_worker_above_the_ceiling() -> None:
    gate = asyncio.Event()
    factories = Factories(answering(b"old", gate=gate), answering(b"new"))
    async with dispatching((await factories()).fork, pool=replace(POOL, floor=1, ceiling=2, spread=1)) as kit:
        generations = Generations(factories, factories.made[0], kit.metrics)
        running = [asyncio.create_task(body(kit, tenant)) for tenant in (TENANT, OTHER_TENANT)]
        await eventually(lambda: kit.pool.state().in_use == 2)
        assert await generations.renew(kit.pool)
        assert len(kit.pool.workers) == 3
        assert await body(kit) == b"new"
        waiting = asyncio.create_task(body(kit, OTHER_TENANT))
        gate.set()
        assert await asyncio.gather(*running, waiting) == [b"old", b"old", b"new"]
        await eventually(lambda: len(kit.pool.workers) <= 2)
        await generations.aclose()


async def test_worker_that_was_starting_when_the_generation_changed__leaves() -> None:
    late = asyncio.Event()
    slow = answering(b"old")
    first = True

    async def fork() -> FakeWorkerProcess:
        nonlocal first
        if not first:
            await late.wait()
        first = False
        return await slow()

    factories = Factories(fork, answering(b"new"))
    async with dispatching((await factories()).fork, pool=replace(POOL, floor=2)) as kit:
        generations = Generations(factories, factories.made[0], kit.metrics)
        assert await generations.renew(kit.pool)
        late.set()
        await eventually(lambda: len(kit.pool.workers) >= 2 and {worker.generation for worker in kit.pool.workers} == {1})
        assert await body(kit) == b"new"
        await generations.aclose()


async def test_renewed_again_and_again_under_load__no_call_fails() -> None:
    factories = Factories(*(answering(str(number).encode()) for number in range(6)))
    async with dispatching((await factories()).fork, pool=replace(POOL, floor=2, ceiling=3)) as kit:
        generations = Generations(factories, factories.made[0], kit.metrics)
        stop, served = False, 0

        async def load(tenant: Any) -> None:
            nonlocal served
            while not stop:
                assert await body(kit, tenant) is not None
                served += 1

        clients = [asyncio.create_task(load(tenant)) for tenant in (TENANT, OTHER_TENANT) * 3]
        for _ in range(5):
            before = served
            assert await generations.renew(kit.pool)
            await eventually(lambda: served > before + 20)  # noqa: B023 - awaited here
        stop = True
        await asyncio.gather(*clients)
        assert await body(kit) == b"5"
        await eventually(lambda: all(factory.closed for factory in factories.made[:-1]))
        await generations.aclose()


async def test_machine_without_a_descriptor_left__refuses_the_generation_and_the_next_one_comes() -> None:
    async def nothing_left() -> FakeWorkerProcess:
        raise OSError(errno.EMFILE, "Too many open files")

    factories = Factories(answering(b"old"), nothing_left, answering(b"new"))
    async with dispatching((await factories()).fork, pool=replace(POOL, floor=2)) as kit:
        generations = Generations(factories, factories.made[0], kit.metrics)
        assert not await generations.renew(kit.pool)
        assert await body(kit) == b"old"
        assert factories.made[1].closed
        assert kit.metric("worker_generations_total", {"result": "refused"}) == 1
        assert await generations.renew(kit.pool)
        assert await body(kit) == b"new"
        await generations.aclose()


async def test_renewed_while_one_is_above_the_ceiling_still__waits_for_it() -> None:
    gate = asyncio.Event()
    factories = Factories(answering(b"old", gate=gate), answering(b"new", gate=gate), answering(b"newest"))
    async with dispatching((await factories()).fork, pool=replace(POOL, floor=1, ceiling=2, spread=1)) as kit:
        generations = Generations(factories, factories.made[0], kit.metrics)
        running = [asyncio.create_task(body(kit, tenant)) for tenant in (TENANT, OTHER_TENANT)]
        await eventually(lambda: kit.pool.state().in_use == 2)
        assert await generations.renew(kit.pool)
        again = asyncio.create_task(generations.renew(kit.pool))
        await asyncio.sleep(0.05)
        assert not again.done()
        assert len(kit.pool.workers) == 3
        gate.set()
        assert await asyncio.gather(*running) == [b"old", b"old"]
        assert await again
        assert await body(kit) == b"newest"
        await generations.aclose()


async def test_new_workers__count_those_that_are_starting_against_the_ceiling() -> None:
    late = asyncio.Event()
    old, forked = answering(b"old"), 0

    async def fork() -> FakeWorkerProcess:
        nonlocal forked
        forked += 1
        if forked > 1:
            await late.wait()
        return await old()

    factories = Factories(fork, answering(b"new"))
    async with dispatching((await factories()).fork, pool=replace(POOL, floor=3, ceiling=3)) as kit:
        generations = Generations(factories, factories.made[0], kit.metrics)
        await eventually(lambda: forked == 3)
        most = 0

        def look() -> bool:
            nonlocal most
            most = max(most, kit.pool._occupied)
            return {worker.generation for worker in kit.pool.workers} == {1} and len(kit.pool.workers) == 3

        renewing = asyncio.create_task(generations.renew(kit.pool))
        late.set()
        await eventually(look)
        assert await renewing
        assert most <= 4
        await generations.aclose()


async def test_zygote_of_a_worker_that_is_still_being_made__lives_until_that_one_has_left() -> None:
    late, forked = asyncio.Event(), 0
    old = answering(b"old")

    async def fork() -> FakeWorkerProcess:
        nonlocal forked
        forked += 1
        if forked > 1:
            await late.wait()
            assert not factories.made[0].closed
        return await old()

    factories = Factories(fork, answering(b"new"))
    async with dispatching((await factories()).fork, pool=replace(POOL, floor=2)) as kit:
        generations = Generations(factories, factories.made[0], kit.metrics)
        await eventually(lambda: forked == 2)
        assert await generations.renew(kit.pool)
        await eventually(lambda: not any(worker.generation == 0 for worker in (*kit.pool.workers, *kit.pool._ending)))
        await asyncio.sleep(0.02)
        assert not factories.made[0].closed
        late.set()
        await eventually(lambda: factories.made[0].closed)
        await generations.aclose()
