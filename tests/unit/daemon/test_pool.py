"""T4: no two tenants in one worker at one moment, whatever comes in whatever order; and workers that come and go."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId
from runnerd.dispatch.breaker import CircuitBreaker
from runnerd.dispatch.connection import WorkerDiedError
from runnerd.dispatch.host_calls import HostCallDesk
from runnerd.dispatch.outcome import Completed
from runnerd.dispatch.pool import Isolation, PoolSettings, WorkerPool
from runnerd.telemetry.metrics import Metrics
from runnerd.worker.frames import FrameKind
from tests.fakes.dispatch_kit import CONNECTION, OTHER_TENANT, POOL, TENANT, Kit, MemoryBroker, dispatching, eventually, make_request
from tests.fakes.fake_worker import FakeWorkerProcess, WorkerEnd, echo, scripted

TENANTS = tuple(TenantId(f"tenant-{letter}") for letter in "abcd")


class Watch:
    """Workers that take their time and notice who shares them."""

    def __init__(self) -> None:
        self.mixed: list[tuple[str, ...]] = []
        self.sequences: list[list[str]] = []

    def script(self, *, turns: int, dies_after: int | None = None) -> Any:
        async def run(worker: WorkerEnd) -> None:
            await worker.greet(slots=3)
            open_calls: dict[int, str] = {}
            seen: list[str] = []
            self.sequences.append(seen)
            tasks = set()

            async def finish(call_id: int) -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)
                del open_calls[call_id]
                await worker.complete(call_id)

            while True:
                call_id, start = await worker.next_start()
                open_calls[call_id] = start.tenant_id
                seen.append(start.tenant_id)
                if len(set(open_calls.values())) > 1:
                    self.mixed.append(tuple(open_calls.values()))
                if dies_after is not None and len(seen) >= dies_after:
                    return
                task = asyncio.get_running_loop().create_task(finish(call_id))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        return run


async def execute(kit: Kit, tenant: TenantId = TENANT, **changes: Any) -> Any:
    return await kit.executor.execute(kit.caller, make_request(tenant_id=tenant, **changes), deadline=None)


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(0, 6)), min_size=1, max_size=40),
    ceiling=st.integers(1, 4),
    spread=st.integers(1, 3),
    turns=st.integers(0, 5),
    isolation=st.sampled_from(list(Isolation)),
    deaths=st.lists(st.none() | st.integers(1, 4), max_size=4),
)
def test_no_two_tenants_ever_share_a_worker(
    calls: list[tuple[TenantId, int]], ceiling: int, spread: int, turns: int, isolation: Isolation, deaths: list[int | None]
) -> None:
    async def scenario() -> None:
        watch = Watch()
        scripts = [watch.script(turns=turns, dies_after=death) for death in deaths]
        fork, _ = scripted(*scripts, then=watch.script(turns=turns))
        pool = PoolSettings(floor=1, ceiling=ceiling, slots=3, spread=spread, isolation=isolation)
        async with dispatching(fork, pool=pool, tenants=TENANTS, queue_seconds=20) as kit:

            async def one(tenant: TenantId, delay: int) -> str:
                for _ in range(delay):
                    await asyncio.sleep(0)
                try:
                    return type((await execute(kit, tenant)).outcome).__name__
                except RefusalError as error:
                    return error.reason.value

            ended = await asyncio.wait_for(asyncio.gather(*(one(*call) for call in calls)), 30)
            # Everybody got an answer, and only a worker's death is a reason for another one than the guest's.
            assert set(ended) <= {"Completed", "WORKER_CRASHED"}
            if not any(deaths):
                assert set(ended) == {"Completed"}
        assert not watch.mixed
        if isolation is Isolation.DEDICATED:
            assert all(len(set(sequence)) <= 1 for sequence in watch.sequences)

    asyncio.run(scenario())


async def test_busy_tenant__does_not_keep_every_worker() -> None:
    """One tenant's calls overlap without a gap on all workers; another's gets a worker all the same."""
    watch = Watch()
    fork, _ = scripted(then=watch.script(turns=30))
    async with dispatching(fork, pool=PoolSettings(floor=1, ceiling=2, slots=3, spread=2)) as kit:
        stop = asyncio.Event()

        async def keep_busy() -> None:
            while not stop.is_set():
                await execute(kit)

        busy = [asyncio.create_task(keep_busy()) for _ in range(4)]
        await eventually(lambda: len(kit.pool.workers) == 2 and kit.pool.state().in_use >= 4)
        assert isinstance((await execute(kit, OTHER_TENANT)).outcome, Completed)
        stop.set()
        await asyncio.gather(*busy)
        assert not watch.mixed


async def test_dedicated__never_changes_its_tenant() -> None:
    watch = Watch()
    fork, _ = scripted(then=watch.script(turns=0))
    pool = PoolSettings(floor=1, ceiling=1, slots=2, spread=1, isolation=Isolation.DEDICATED)
    async with dispatching(fork, pool=pool) as kit:
        for tenant in (TENANT, OTHER_TENANT, TENANT):
            await execute(kit, tenant)
        assert watch.sequences == [[TENANT], [OTHER_TENANT], [TENANT]]
        assert kit.metric("worker_restarts_total", {"cause": "isolation"}) == 2


async def test_install_isolation__separates_installs_of_one_tenant() -> None:
    seen: dict[int, set[str]] = {}

    async def script(worker: WorkerEnd) -> None:
        await worker.greet()
        while True:
            call_id, start = await worker.next_start()
            seen.setdefault(id(worker), set()).add(start.install_id)
            await worker.next_of(FrameKind.CANCEL)
            await worker.complete(call_id)

    fork, _ = scripted(then=script)
    metrics = Metrics()
    desk = HostCallDesk(MemoryBroker(), metrics)
    settings = PoolSettings(floor=1, ceiling=4, slots=4, spread=1, isolation=Isolation.INSTALL)
    pool = WorkerPool(fork, desk=desk, breaker=CircuitBreaker(metrics), settings=settings, connection=CONNECTION, metrics=metrics)
    await pool.start()
    deadline = time.monotonic() + 5
    async with (
        pool.worker_for(tenant_id="a", install_id="1", deadline=deadline) as one,
        pool.worker_for(tenant_id="a", install_id="2", deadline=deadline) as two,
        pool.worker_for(tenant_id="a", install_id="1", deadline=deadline) as again,
    ):
        assert one is not two
        assert again is one
    await pool.aclose()


async def test_spread__uses_as_many_workers_as_cpus_for_one_tenant() -> None:
    held = asyncio.Event()

    async def holds(worker: WorkerEnd) -> None:
        await worker.greet()
        calls: list[int] = []
        while len(calls) < 2:
            calls.append((await worker.next_start())[0])
        await held.wait()
        for call_id in calls:
            await worker.complete(call_id)
        await worker.next_frame()

    fork, _ = scripted(then=holds)
    async with dispatching(fork, pool=PoolSettings(floor=2, ceiling=4, slots=4, spread=2)) as kit:
        await eventually(lambda: len(kit.pool.workers) == 2)
        calls = [asyncio.create_task(execute(kit)) for _ in range(4)]
        await eventually(lambda: kit.pool.state().in_use == 4)
        loads = sorted(worker.in_flight for worker in kit.pool.workers if worker.in_flight)
        assert loads == [2, 2]
        held.set()
        await asyncio.gather(*calls)


async def test_ceiling__is_never_exceeded_and_waiting_ends() -> None:
    async def holds(worker: WorkerEnd) -> None:
        await worker.greet()
        await asyncio.Event().wait()

    fork, made = scripted(then=holds)
    async with dispatching(fork, pool=PoolSettings(floor=1, ceiling=2, slots=1, spread=4), queue_seconds=0.2) as kit:
        calls = [asyncio.create_task(execute(kit)) for _ in range(2)]
        await eventually(lambda: kit.pool.state().in_use == 2)
        with pytest.raises(RefusalError) as refused:
            await execute(kit)
        assert refused.value.reason is Reason.OVERLOADED
        assert len(made) == 2
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_floor__is_kept_when_workers_die() -> None:
    fork, made = scripted()
    async with dispatching(fork, pool=replace(POOL, floor=3)) as kit:
        await eventually(lambda: len(kit.pool.workers) == 3)
        for process in list(made):
            process.kill()
        await eventually(lambda: len(kit.pool.workers) == 3 and len(made) == 6, seconds=1.0)
        assert kit.metric("worker_restarts_total", {"cause": "exited"}) == 3


async def test_idle_workers__go_down_to_the_floor() -> None:
    fork, made = scripted()
    async with dispatching(fork, pool=replace(POOL, floor=1, spread=4, idle_seconds=0.2)) as kit:
        await asyncio.gather(*(execute(kit) for _ in range(8)))
        await eventually(lambda: len(kit.pool.workers) == 1)
        await eventually(lambda: sum(not process.end.socket._closed for process in made) == 1)  # type: ignore[attr-defined]
        assert isinstance((await execute(kit)).outcome, Completed)


async def test_worn_out_worker__is_replaced_when_it_is_empty() -> None:
    fork, made = scripted()
    async with dispatching(fork, pool=replace(POOL, floor=1, ceiling=1, max_calls=2)) as kit:
        for _ in range(5):
            assert isinstance((await execute(kit)).outcome, Completed)
        assert len(made) >= 3
        assert kit.metric("worker_restarts_total", {"cause": "recycled"}) == 2


async def test_close__refuses_who_waits_and_reaps_everything() -> None:
    async def holds(worker: WorkerEnd) -> None:
        await worker.greet()
        await asyncio.Event().wait()

    fork, made = scripted(then=holds)
    metrics = Metrics()
    desk = HostCallDesk(MemoryBroker(), metrics)
    settings = PoolSettings(floor=1, ceiling=1, slots=1, spread=1)
    pool = WorkerPool(fork, desk=desk, breaker=CircuitBreaker(metrics), settings=settings, connection=CONNECTION, metrics=metrics)
    await pool.start()

    async def wait_for_one() -> None:
        async with pool.worker_for(tenant_id="b", install_id="i", deadline=time.monotonic() + 30):
            pytest.fail("nobody gets a worker here")

    async with pool.worker_for(tenant_id="a", install_id="i", deadline=time.monotonic() + 5):
        waiting = asyncio.create_task(wait_for_one())
        await asyncio.sleep(0.01)
        await pool.aclose()
        with pytest.raises(RefusalError) as refused:
            await waiting
        assert refused.value.reason is Reason.OVERLOADED
    assert all(process._task.done() for process in made)
    with pytest.raises(RefusalError):
        await wait_for_one()


async def test_fork_that_fails__is_tried_again() -> None:
    attempts = 0

    async def fork() -> FakeWorkerProcess:
        nonlocal attempts
        attempts += 1
        if attempts in {2, 3}:
            raise OSError(11, "no process left")
        return FakeWorkerProcess(echo)

    async with dispatching(fork, pool=replace(POOL, floor=2)) as kit:
        await eventually(lambda: len(kit.pool.workers) == 2)
        assert attempts == 4


async def test_worker_died_error__says_what_matters() -> None:
    assert "before" in str(WorkerDiedError(started=False))
    assert WorkerDiedError(started=True, had_host_calls=True).had_host_calls


async def test_workers_whose_zygote_has_died__are_sent_nothing_and_the_call_runs_where_one_lives() -> None:
    fork, made = scripted()
    async with dispatching(fork) as kit:
        await kit.executor.execute(kit.caller, make_request(), deadline=None)
        await eventually(lambda: len(kit.pool.workers) == len(made))
        dying = list(made)
        before = [len(process.end.starts) for process in dying]
        for process in dying:
            # Their sockets are open still: the kernel has not come to them yet.
            process.zygote_died = True
        result = await kit.executor.execute(kit.caller, make_request(), deadline=None)
        assert isinstance(result.outcome, Completed)
        assert [len(process.end.starts) for process in dying] == before
        assert kit.metric("worker_restarts_total", {"cause": "zygote_died"}) >= 1
        assert not kit.breaker._circuits


async def test_worker_whose_socket_closes_before_its_zygotes_end_is_known__is_nobodys_fault() -> None:
    async def dies(worker: WorkerEnd) -> None:
        await worker.greet()
        await worker.next_start()

    class Reported(FakeWorkerProcess):
        """Its zygote has died, which is heard of with the report of its end only."""

        async def wait_exit(self) -> int:
            await asyncio.sleep(0.05)
            self.zygote_died = True
            return await super().wait_exit()

    left = [dies]

    async def fork() -> FakeWorkerProcess:
        return Reported(left.pop()) if left else FakeWorkerProcess(echo)

    async with dispatching(fork) as kit:
        with pytest.raises(RefusalError) as refused:
            await kit.executor.execute(kit.caller, make_request(), deadline=None)
        assert refused.value.reason is Reason.WORKER_CRASHED
        assert kit.metric("worker_restarts_total", {"cause": "zygote_died"}) == 1
        assert kit.metric("worker_restarts_total", {"cause": "exited"}) == 0
        assert not kit.breaker._circuits
