"""Hostile guests in a real worker: each ends as it should, its neighbours never notice, and the process stays the same."""

from __future__ import annotations

import asyncio
import os

import pytest
import wasmtime

from extrunner.worker.v1 import worker_pb2
from runnerd.dispatch.zygote import Zygote
from runnerd.worker.settings import WorkerConfig
from tests.fakes import guests
from tests.fakes.worker_driver import MIB, WorkerDriver, status_of

HOSTILE = ("spin_forever", "spin_at_start", "bulk_memory_loop", "memory_bomb", "stack_overflow", "many_pollables", "log_flood", "exit")


async def test_hostile_guests__beside_ordinary_calls__are_not_noticed_by_them(worker: WorkerDriver) -> None:
    """How each ends is in the corpus (tests/adversarial/engine); here they run at once with others in one worker."""
    component = await worker.load("hello")
    for name in HOSTILE:
        hostile = await worker.begin(name, wall_time_us=400_000)
        ordinary = await asyncio.gather(*(worker.call(component) for _ in range(3)))

        assert (await worker.end_of(hostile)).kind in {"limit", "trapped", "completed"}
        assert {result.body for result in ordinary} == {b"hello"}
    assert not worker.process.has_exited


async def test_fourteen_loops__other_calls_proceed_and_each_loop_is_cut(worker: WorkerDriver) -> None:
    loops = [await worker.begin("spin_forever", wall_time_us=1_500_000, cpu_time_us=30_000_000) for _ in range(14)]
    served = 0
    while not all(worker._calls[loop].ended.done() for loop in loops):
        assert (await worker.call("hello")).body == b"hello"
        served += 1
    ended = [await worker.end_of(loop) for loop in loops]

    assert served > 3
    assert {result.limit for result in ended} == {"wall_time"}
    # The documented bounds are measured by the benchmark (scripts/benchmark/limits.py); this only says that none runs on.
    assert all(1_500 <= result.done.limit.used < 1_500 + 2_000 for result in ended)


async def test_traps_of_many_threads__no_error_reaches_another_call(worker: WorkerDriver) -> None:
    """wasmtime parks an exception of a host callback in a global, and the next trap of any thread takes it (RUNTIME §4.1)."""

    def nonsense(_function: object, _arguments: object) -> worker_pb2.HostReply:
        return worker_pb2.HostReply(error="no such case")

    for _ in range(10):
        broken = [await worker.begin("get_setting", answer=nonsense) for _ in range(4)]
        trapping = [await worker.begin(name) for name in ("unreachable", "divide_by_zero", "exit", "out_of_bounds")]
        exploded = [(await worker.end_of(call)).done for call in broken]
        trapped = [(await worker.end_of(call)).trap for call in trapping]

        assert {done.internal_error for done in exploded} == {"extrunner:host/config.get failed: ConnectionError"}
        assert trapped == ["unreachable", "arithmetic", "exit", "out_of_bounds"]


async def test_memory_bombs__one_after_another__leave_nothing_behind(worker: WorkerDriver) -> None:
    def resident() -> int:
        return int(status_of(worker.process.pid).split("VmRSS:")[1].split()[0])

    await worker.call("memory_bomb", memory_bytes=64 * MIB)
    before = resident()
    for _ in range(12):
        assert (await worker.call("memory_bomb", memory_bytes=64 * MIB)).limit == "memory"

    assert resident() - before < 64 * 1024  # KiB: not even one bomb


async def test_memory_of_an_earlier_call__is_not_seen_by_a_later_one(worker: WorkerDriver) -> None:
    # The echo's body lies in the guest's memory; a fresh instance of another guest answers 2 MiB of its own memory.
    marker = b"MARKER-OF-ANOTHER-CALL" * 1_000
    for _ in range(20):
        await worker.call("echo", body=marker)
    for _ in range(5):
        ended = await worker.call("respond_2_mib")
        assert ended.body is not None
        assert b"MARKER" not in ended.body


async def test_bodies_beyond_the_budget__wait_for_each_other(zygote: Zygote) -> None:
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig(body_bytes_in_flight=MIB))) as worker:
        body = os.urandom(700_000)
        calls = [await worker.begin("echo", body=body, wall_time_us=30_000_000, cpu_time_us=30_000_000) for _ in range(4)]
        ended = [await worker.end_of(call) for call in calls]

    assert {result.body == body for result in ended} == {True}


async def test_request_body_at_the_default_limit__crosses(worker: WorkerDriver) -> None:
    ended = await worker.call("echo", body=b"x" * (10 * MIB), wall_time_us=30_000_000, cpu_time_us=30_000_000, memory_bytes=64 * MIB)

    # It arrives; it is too large to come back.
    assert ended.limit == "response_size"


@pytest.mark.parametrize("name", ["core module", "garbage"])
async def test_artifact_that_is_none__is_not_run(worker: WorkerDriver, name: str) -> None:
    data = bytes(wasmtime.wat2wasm("(module)")) if name == "core module" else os.urandom(50_000)
    component = await worker.load_bytes(data)

    assert "not loaded" in (await worker.call(component)).done.internal_error
    assert (await worker.call("hello")).body == b"hello"


async def test_wrong_number_of_memories__fails_closed(worker: WorkerDriver) -> None:
    component = await worker.load_compiled(guests.compiled("two_memories"), memories=1)

    assert (await worker.call(component)).trap == "instantiation"
