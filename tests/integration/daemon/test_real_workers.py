"""Execute, end to end from the use case down to native code in hardened workers: outcomes, limits, crashes, neighbours."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId
from registry.domain.limits import MIB, LimitWishes
from runnerd.dispatch.cpus import find_cpus
from runnerd.dispatch.generations import Generations
from runnerd.dispatch.outcome import Completed, GuestError, LimitExceeded, LimitKind, TrapKind, Trapped
from runnerd.dispatch.request import ExecutionResult
from runnerd.dispatch.workers import WorkerFactory
from runnerd.worker.settings import WorkerConfig
from tests.fakes.dispatch_kit import OTHER_TENANT, TENANT, Kit, eventually, make_request
from tests.integration.daemon.conftest import RunningKit


async def execute(kit: Kit, guest: str, **changes: Any) -> ExecutionResult:
    return await kit.executor.execute(kit.caller, make_request(extension=f"com.example.{guest}", **changes), deadline=None)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_hello__runs_and_is_recorded(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        result = await execute(kit, "hello", path="/notes/7")
        assert result.outcome == Completed(status=200, headers=(), body=b"hello")
        assert result.usage.fuel > 0
        assert result.usage.wall_us > 0
        record = kit.recorder.records[0]
        assert (record.outcome, record.http_status, record.endpoint) == ("completed", 200, "/notes/:id")
        assert kit.pool.state().hardening["seccomp"]
        with_body = await execute(kit, "hello", method="POST", body=os.urandom(MIB))
        assert isinstance(with_body.outcome, Completed)


async def test_call_path__comes_from_the_record_and_is_counted(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        bridged = await execute(kit, "hello")
        ordinary = await execute(kit, "hello-unbridged")
        assert bridged.outcome == ordinary.outcome
        assert kit.metric("calls_by_path_total", {"path": "bridge"}) == 1
        assert kit.metric("calls_by_path_total", {"path": "ordinary"}) == 1
        # One page of its own; measured where the bridge ran, estimated where not.
        assert bridged.usage.peak_memory_bytes == 64 * 1024


async def test_large_response__crosses_the_bridge_and_without_it_is_the_limit_of_that_path(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        bridged = await execute(kit, "big")
        assert isinstance(bridged.outcome, Completed)
        assert len(bridged.outcome.body or b"") == 3 * MIB
        outcome = (await execute(kit, "big-unbridged")).outcome
        assert outcome == LimitExceeded(limit=LimitKind.RESPONSE_SIZE, used=2 * MIB + 1, allowed=2 * MIB)


async def test_endless_loop__is_cut_while_others_run(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        wishes = LimitWishes(wall_time_ms=700)
        looping = asyncio.create_task(execute(kit, "loop", wishes=wishes))
        await eventually(lambda: kit.pool.state().in_use == 1)
        during = 0
        while not looping.done() and during < 20:
            for tenant in (TENANT, OTHER_TENANT):
                assert isinstance((await execute(kit, "hello", tenant_id=tenant)).outcome, Completed)
            during += not looping.done()
        outcome = (await looping).outcome
        assert during >= 1, "short calls ended while the loop ran"
        assert isinstance(outcome, LimitExceeded)
        assert outcome.limit is LimitKind.WALL_TIME
        assert outcome.allowed == 700
        assert kit.metric("worker_restarts_total", {"cause": "backstop"}) == 0


async def test_fuel__ends_a_loop(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        outcome = (await execute(kit, "loop", wishes=LimitWishes(fuel=100_000))).outcome
        assert isinstance(outcome, LimitExceeded)
        assert (outcome.limit, outcome.allowed) == (LimitKind.FUEL, 100_000)


async def test_memory_bomb__is_a_limit_and_the_worker_lives(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        pids = {worker.pid for worker in kit.pool.workers}
        outcome = (await execute(kit, "grow", wishes=LimitWishes(memory_bytes=32 * MIB))).outcome
        assert isinstance(outcome, LimitExceeded)
        assert (outcome.limit, outcome.allowed) == (LimitKind.MEMORY, 32 * MIB)
        assert pids <= {worker.pid for worker in kit.pool.workers}
        assert isinstance((await execute(kit, "hello")).outcome, Completed)


@pytest.mark.parametrize(("guest", "kind"), [("recurse", TrapKind.STACK_OVERFLOW), ("trap", TrapKind.UNREACHABLE)])
async def test_traps__are_outcomes(real_dispatcher: RunningKit, guest: str, kind: TrapKind) -> None:
    async with real_dispatcher() as kit:
        outcome = (await execute(kit, guest)).outcome
        assert isinstance(outcome, Trapped)
        assert outcome.kind is kind


async def test_invalid_status__is_a_guest_error(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        assert isinstance((await execute(kit, "status")).outcome, GuestError)


async def test_worker_killed_in_mid_call__typed_error_and_only_its_tenant_sees_it(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        victim = asyncio.create_task(execute(kit, "loop"))
        await eventually(lambda: kit.pool.state().in_use == 1)
        worker = next(worker for worker in kit.pool.workers if worker.key == TENANT)
        other = asyncio.create_task(execute(kit, "loop", tenant_id=OTHER_TENANT, wishes=LimitWishes(wall_time_ms=500)))
        await eventually(lambda: any(worker.key == OTHER_TENANT for worker in kit.pool.workers))
        await asyncio.sleep(0.05)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RefusalError) as refused:
            await victim
        assert refused.value.reason is Reason.WORKER_CRASHED
        assert refused.value.metadata == {"started": "true"}
        assert isinstance((await other).outcome, LimitExceeded)
        assert isinstance((await execute(kit, "hello")).outcome, Completed)
        # Replaced within a second.
        await eventually(lambda: len(kit.pool.workers) >= 2, seconds=1.0)
        assert kit.metric("worker_restarts_total", {"cause": "exited"}) == 1
        assert kit.recorder.records[0].reason == "WORKER_CRASHED"


@pytest.mark.parametrize("end", ["killed", "cancelled", "cut"])
async def test_last_words__of_a_call_that_does_not_return__are_in_its_record(real_dispatcher: RunningKit, end: str) -> None:
    async with real_dispatcher() as kit:
        call = asyncio.create_task(execute(kit, "last-words", wishes=LimitWishes(wall_time_ms=2_000 if end == "cut" else 20_000)))
        await eventually(
            lambda: any(opened.notes.log for worker in kit.pool.workers for opened in worker._table.calls) or call.done(), seconds=20
        )
        if end == "killed":
            os.kill(next(worker.pid for worker in kit.pool.workers if worker.in_flight), signal.SIGKILL)
        elif end == "cancelled":
            call.cancel()
        await asyncio.wait({call})
        record = kit.recorder.records[0]
        said = [(line["message"], line["stream"], line["level"]) for line in record.log]
        assert said == [("last words", "log", "info")]
        # It computes: which of the two limits of time it meets first depends on how much of a processor it gets.
        assert record.reason in {"killed": ["WORKER_CRASHED"], "cancelled": ["CANCELLED"], "cut": ["wall_time", "cpu_time"]}[end]
        assert call.cancelled() or call.exception() is not None or end == "cut"


async def test_cancelled_caller__guest_ends_and_the_slot_is_free(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        call = asyncio.create_task(execute(kit, "loop"))
        await eventually(lambda: kit.pool.state().in_use == 1)
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await eventually(lambda: kit.pool.state().in_use == 0)
        assert sum(worker.in_flight for worker in kit.pool.workers) == 0
        assert kit.metric("worker_restarts_total", {"cause": "backstop"}) == 0
        assert kit.recorder.records[0].reason == "CANCELLED"


async def test_crowd_of_loops_of_one_tenant__leaves_the_other_alone(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        loops = [asyncio.create_task(execute(kit, "loop", wishes=LimitWishes(wall_time_ms=800))) for _ in range(8)]
        await eventually(lambda: kit.pool.state().in_use >= 6)
        assert isinstance((await execute(kit, "hello", tenant_id=OTHER_TENANT)).outcome, Completed)
        assert not any(loop.done() for loop in loops)
        assert all(isinstance(result.outcome, LimitExceeded) for result in await asyncio.gather(*loops))


async def test_deadline_of_the_caller__is_the_wall_time(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        request = make_request(extension="com.example.loop")
        outcome = (await kit.executor.execute(kit.caller, request, deadline=time.monotonic() + 0.3)).outcome
        assert isinstance(outcome, LimitExceeded)
        assert outcome.limit is LimitKind.WALL_TIME
        assert outcome.allowed <= 300


async def test_nothing_stays_behind(real_dispatcher: RunningKit) -> None:
    async with real_dispatcher() as kit:
        await execute(kit, "hello")
        pids = [worker.pid for worker in kit.pool.workers]
        assert all(is_alive(pid) for pid in pids)
    assert not any(is_alive(pid) for pid in pids)


async def test_new_generations_under_load__no_call_fails_and_nothing_of_the_old_stays(real_dispatcher: RunningKit) -> None:
    made: list[WorkerFactory] = []

    async def make() -> WorkerFactory:
        made.append(await WorkerFactory.start(WorkerConfig(slots=8), cpus=find_cpus("auto")))
        return made[-1]

    async with real_dispatcher() as kit:
        generations = await Generations.start(make, kit.metrics)
        stop, served = False, 0

        async def load(tenant: TenantId) -> None:
            nonlocal served
            while not stop:
                assert isinstance((await execute(kit, "hello", tenant_id=tenant)).outcome, Completed)
                served += 1

        clients = [asyncio.create_task(load(tenant)) for tenant in (TENANT, OTHER_TENANT) * 2]
        old: set[int] = set()
        for _ in range(3):
            old |= {worker.pid for worker in kit.pool.workers}
            looping = asyncio.create_task(execute(kit, "loop", wishes=LimitWishes(wall_time_ms=900)))
            await eventually(lambda: kit.pool.state().in_use > 0)
            assert await generations.renew(kit.pool)
            before = served
            await eventually(lambda: served > before + 5, seconds=20)  # noqa: B023 - awaited here
            assert isinstance((await looping).outcome, LimitExceeded)
        stop = True
        await asyncio.gather(*clients)
        await eventually(lambda: not any(is_alive(pid) for pid in old), seconds=20)
        assert kit.pool.generation == 3
        assert kit.metric("worker_restarts_total", {"cause": "exited"}) == 0
        # A zygote is ended after its last worker has left.
        await eventually(lambda: sum(made_one._zygote.pid is not None for made_one in made) == 1, seconds=20)
        await kit.pool.aclose()
        await generations.aclose()
