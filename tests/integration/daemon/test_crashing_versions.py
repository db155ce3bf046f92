"""Versions that end their real workers: one attempt each, paused after three, and nobody else's trouble (T28)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId, VersionId
from registry.domain.limits import MIB, LimitWishes
from runnerd.dispatch.connection import WorkerConnection
from runnerd.dispatch.memory import MemoryLimits
from runnerd.dispatch.outcome import Completed, LimitExceeded, LimitKind
from runnerd.dispatch.request import ExecutionResult
from tests.fakes.dispatch_kit import OTHER_TENANT, TENANT, Kit, eventually, make_install, make_request
from tests.integration.daemon.conftest import RunningKit

LONG = LimitWishes(wall_time_ms=20_000, cpu_time_ms=10_000)


async def execute(kit: Kit, guest: str, *, tenant_id: TenantId = TENANT, wishes: LimitWishes | None = None) -> ExecutionResult:
    request = make_request(extension=f"com.example.{guest}", tenant_id=tenant_id, wishes=wishes or LimitWishes())
    return await kit.executor.execute(kit.caller, request, deadline=None)


def busy(kit: Kit, tenant: str = TENANT) -> list[WorkerConnection]:
    return [worker for worker in kit.pool.workers if worker.key.startswith(tenant) and worker.in_flight]


async def crash(kit: Kit, guest: str = "loop", *, number: signal.Signals = signal.SIGABRT) -> RefusalError:
    """Run a guest and let its worker die of it."""
    call = asyncio.create_task(execute(kit, guest, wishes=LONG))
    await eventually(lambda: bool(busy(kit)))
    await asyncio.sleep(0.02)
    os.kill(busy(kit)[0].pid, number)
    with pytest.raises(RefusalError) as refused:
        await call
    return refused.value


def oom_score_of(pid: int) -> str:
    return Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii").strip()


def zygote_of(kit: Kit) -> int:
    parent = int(Path(f"/proc/{kit.pool.workers[0].pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[1])
    assert b"runnerd.worker.zygote" in Path(f"/proc/{parent}/cmdline").read_bytes()
    return parent


async def test_version_that_crashes__one_attempt_each_then_paused_and_others_never_notice(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        stop, served = asyncio.Event(), 0

        async def neighbour() -> None:
            nonlocal served
            while not stop.is_set():
                # The same version as the one that crashes elsewhere, too.
                assert isinstance((await execute(kit, "hello", tenant_id=OTHER_TENANT)).outcome, Completed)
                limited = await execute(kit, "loop", tenant_id=OTHER_TENANT, wishes=LimitWishes(wall_time_ms=50))
                assert isinstance(limited.outcome, LimitExceeded)
                served += 1

        other = asyncio.create_task(neighbour())
        for number in (signal.SIGABRT, signal.SIGKILL, signal.SIGABRT):
            refused = await crash(kit, number=number)
            assert refused.reason is Reason.WORKER_CRASHED
            assert refused.metadata == {"started": "true"}
        with pytest.raises(RefusalError) as paused:
            await execute(kit, "loop")
        assert paused.value.reason is Reason.CIRCUIT_OPEN
        assert paused.value.retry_after_seconds in {29, 30}

        assert kit.breaker.open == 1
        assert kit.metric("worker_restarts_total", {"cause": "exited"}) == 3, "no attempt was added"
        crashed = [record for record in kit.recorder.records if record.reason == "WORKER_CRASHED"]
        assert len(crashed) == 3
        assert isinstance((await execute(kit, "hello")).outcome, Completed), "another version of the same tenant"
        before = served
        await eventually(lambda: served > before + 1)
        stop.set()
        await other


async def test_paused_version__is_tried_alone_and_its_success_ends_the_pause(real_dispatcher: RunningKit) -> None:
    now = time.monotonic()
    async with real_dispatcher(clock=lambda: now) as kit:
        for _ in range(3):
            await crash(kit)
        now += 31
        trial = asyncio.create_task(execute(kit, "loop", wishes=LimitWishes(wall_time_ms=400)))
        await eventually(lambda: bool(busy(kit)))
        with pytest.raises(RefusalError) as refused:
            await execute(kit, "loop")
        assert refused.value.reason is Reason.CIRCUIT_OPEN
        assert isinstance((await execute(kit, "hello")).outcome, Completed)
        assert [worker.in_flight for worker in busy(kit)] == [1], "the other call went to another worker"
        outcome = (await trial).outcome
        assert isinstance(outcome, LimitExceeded)
        assert outcome.limit is LimitKind.WALL_TIME
        assert kit.breaker.open == 0


async def test_innocent_neighbour_in_the_same_worker__is_separated_and_never_paused(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher(pool={"floor": 1, "spread": 1}) as kit:
        innocent = make_install(kit.extensions.by_hash[kit.installs.by_key[TENANT, "com.example.loop"].content_hash])
        innocent = replace(innocent, extension_name="com.example.innocent", version_id=VersionId("another-version"))
        kit.installs.add(innocent)

        victim = asyncio.create_task(execute(kit, "innocent", wishes=LONG))
        await eventually(lambda: len(busy(kit)) == 1)
        refused = await crash(kit)
        assert refused.reason is Reason.WORKER_CRASHED
        with pytest.raises(RefusalError):
            await victim

        for _ in range(3):
            victim = asyncio.create_task(execute(kit, "innocent", wishes=LONG))
            await eventually(lambda: len(busy(kit)) == 1)
            held = busy(kit)[0]
            guilty = asyncio.create_task(execute(kit, "loop", wishes=LONG))
            await eventually(lambda: len(busy(kit)) == 2)
            (alone,) = (worker for worker in busy(kit) if worker is not held)
            os.kill(alone.pid, signal.SIGKILL)
            with pytest.raises(RefusalError):
                await guilty
            assert not victim.done()
            victim.cancel()
            await asyncio.gather(victim, return_exceptions=True)
            await eventually(lambda: not busy(kit))
        with pytest.raises(RefusalError) as paused:
            await execute(kit, "loop")
        assert paused.value.reason is Reason.CIRCUIT_OPEN
        outcome = (await execute(kit, "innocent", wishes=LimitWishes(wall_time_ms=50))).outcome
        assert isinstance(outcome, LimitExceeded)


async def test_stuck_where_epochs_cannot_reach__costs_one_worker_and_counts(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher(pool={"floor": 2}) as kit:
        for attempt in range(1, 4):
            call = asyncio.create_task(execute(kit, "loop", wishes=LimitWishes(wall_time_ms=500)))
            await eventually(lambda: bool(busy(kit)))
            await asyncio.sleep(0.02)
            stuck = busy(kit)[0]
            os.kill(stuck.pid, signal.SIGSTOP)
            outcome = (await call).outcome
            assert isinstance(outcome, LimitExceeded)
            assert outcome.limit is LimitKind.WALL_TIME
            await eventually(lambda: kit.metric("worker_restarts_total", {"cause": "backstop"}) == attempt)  # noqa: B023 - awaited here
            await eventually(lambda: len(kit.pool.workers) >= 2, seconds=1.0)
            assert stuck not in kit.pool.workers
        with pytest.raises(RefusalError) as paused:
            await execute(kit, "loop")
        assert paused.value.reason is Reason.CIRCUIT_OPEN
        assert isinstance((await execute(kit, "hello")).outcome, Completed)


async def test_memory_bomb__its_worker_goes_before_the_kernel_chooses_and_others_never_notice(real_dispatcher: RunningKit) -> None:
    limits = MemoryLimits(budget_bytes=4_096 * MIB, worker_bytes=120 * MIB)
    async with real_dispatcher(pool={"floor": 2, "memory": limits, "memory_seconds": 0.05}) as kit:
        for attempt in range(1, 4):
            bomb = asyncio.create_task(execute(kit, "hoard", wishes=LONG))
            other = asyncio.create_task(execute(kit, "loop", tenant_id=OTHER_TENANT, wishes=LimitWishes(wall_time_ms=300)))
            with pytest.raises(RefusalError) as refused:
                await bomb
            assert refused.value.reason is Reason.WORKER_CRASHED
            assert isinstance((await other).outcome, LimitExceeded)
            assert kit.metric("worker_restarts_total", {"cause": "memory"}) == attempt
        with pytest.raises(RefusalError) as paused:
            await execute(kit, "hoard")
        assert paused.value.reason is Reason.CIRCUIT_OPEN
        assert kit.metric("workers_memory_bytes") > 0


async def test_workers__are_what_the_kernel_ends_first(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        assert isinstance((await execute(kit, "hello")).outcome, Completed)
        assert {oom_score_of(worker.pid) for worker in kit.pool.workers} == {"1000"}
        assert oom_score_of(zygote_of(kit)) != "1000"


async def holding_a_worker(kit: Kit) -> asyncio.Task[ExecutionResult]:
    """Start a call that runs. One may meet a worker of the zygote before, which had said Hello when it died with that."""
    while True:
        call = asyncio.create_task(execute(kit, "loop", wishes=LONG))
        await eventually(lambda: bool(busy(kit)) or call.done())  # noqa: B023 - awaited here
        if not call.done():
            return call
        with pytest.raises(RefusalError):
            await call


async def test_zygote_that_dies__is_nobodys_fault(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        for _ in range(3):
            call = await holding_a_worker(kit)
            before = kit.pool.workers
            os.kill(zygote_of(kit), signal.SIGKILL)
            with pytest.raises(RefusalError) as refused:
                await call
            await eventually(lambda: not set(before) & set(kit.pool.workers) and bool(kit.pool.workers))  # noqa: B023 - awaited here
            assert refused.value.reason is Reason.WORKER_CRASHED
        # As above: the first call after a zygote's death may meet a worker that was born just before it. Once one runs, all do.
        settled = await holding_a_worker(kit)
        outcome = (await execute(kit, "loop", wishes=LimitWishes(wall_time_ms=50))).outcome
        assert isinstance(outcome, LimitExceeded)
        settled.cancel()
        assert kit.metric("worker_restarts_total", {"cause": "exited"}) == 0
        assert kit.metric("worker_restarts_total", {"cause": "zygote_died"}) >= 3
        assert not kit.breaker._circuits
