"""Calls over the real socket of a real worker."""

from __future__ import annotations

import asyncio
import os

import pytest

from runnerd.dispatch.zygote import Zygote
from runnerd.engine.compilation import compile_component
from runnerd.engine.profile import EngineProfile, engine_fingerprint
from runnerd.worker.frames import PROTOCOL_VERSION, FrameKind, encode_frame, encode_message
from runnerd.worker.loop import EXIT_CLOSED, EXIT_PROTOCOL
from runnerd.worker.settings import WorkerConfig
from tests.fakes import guests
from tests.fakes.worker_driver import ALWAYS, MIB, WorkerDriver, start, status_of


async def test_hello__says_who_it_is(worker: WorkerDriver) -> None:
    hello = worker.hello

    assert hello.protocol_version == PROTOCOL_VERSION
    assert hello.engine_fingerprint == engine_fingerprint()
    assert hello.pid == worker.process.pid
    assert hello.slots == 16
    assert hello.build
    assert not {"no_new_privs", "not_dumpable", "rlimits", "seccomp", "environment", "descriptors", "parent_death"} - set(
        hello.hardening_applied
    )


async def test_call__is_answered_with_usage(worker: WorkerDriver) -> None:
    ended = await worker.call("hello")

    assert (ended.done.completed.status, ended.body) == (200, b"hello")
    assert ended.done.fuel > 0
    assert ended.done.wall_time_us >= 0
    assert ended.done.peak_memory_bytes <= 64 * MIB


async def test_calls__of_several_components_at_once(worker: WorkerDriver) -> None:
    calls = [await worker.begin(name, body=b"x" * size) for size in (10, 70_000) for name in ("hello", "echo", "divide_by_zero") * 4]
    ended = await asyncio.gather(*(worker.end_of(call) for call in calls))

    assert [result.kind for result in ended] == ["completed", "completed", "trapped"] * 8
    assert {len(result.body or b"") for result in ended} == {0, 5, 10, 70_000}


async def test_more_calls_than_slots__wait_their_turn(zygote: Zygote) -> None:
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig(slots=2))) as worker:
        ended = await asyncio.gather(*[worker.end_of(await worker.begin("hello")) for _ in range(20)])

    assert {result.kind for result in ended} == {"completed"}


async def test_host_call__while_others_run(worker: WorkerDriver) -> None:
    waiting = await worker.begin("get_setting")
    others = await asyncio.gather(*[worker.end_of(await worker.begin("get_setting", answer=lambda _f, _a: "blue")) for _ in range(8)])
    assert {result.body for result in others} == {b"blue"}
    await worker.cancel(waiting)

    assert (await worker.end_of(waiting)).done.internal_error == "cancelled"


async def test_host_call__never_answered__ends_with_the_wall_time(worker: WorkerDriver) -> None:
    ended = await worker.call("get_setting", wall_time_us=200_000)

    assert (ended.kind, ended.limit) == ("limit", "wall_time")
    assert ended.host_calls == [("extrunner:host/config.get", ("colour",))]


async def test_host_reply__that_comes_late__is_not_taken_for_the_next_call(worker: WorkerDriver) -> None:
    call = await worker.begin("get_setting", wall_time_us=100_000)
    await worker.end_of(call)
    await worker.send_raw(encode_frame(FrameKind.HOST_REPLY, call, b"\x0a\x03\x32\x01x"))

    assert (await worker.call("get_setting", answer=lambda _f, _a: "blue")).body == b"blue"


async def test_host_reply__that_makes_no_sense__is_an_error_of_ours(worker: WorkerDriver) -> None:
    call = await worker.begin("get_setting")
    await worker.send_raw(encode_frame(FrameKind.HOST_REPLY, call, b"\x12\x06denied"))

    assert "failed" in (await worker.end_of(call)).done.internal_error


async def test_log__of_a_running_call__leaves_before_its_end(worker: WorkerDriver) -> None:
    call = await worker.begin("log_and_spin", wall_time_us=30_000_000)
    await asyncio.wait_for(worker.line_arrived.wait(), 10)
    await worker.cancel(call)
    ended = await worker.end_of(call)

    assert [(line.level, line.message) for line in ended.lines] == [("info", "last words")]


async def test_cancel__before_its_body_has_come__ends_the_call(worker: WorkerDriver) -> None:
    component = await worker.load("echo")
    call = await worker.begin(component, body=b"")
    await worker.end_of(call)
    # By hand: START, CANCEL, then the body.
    worker._calls[9_999] = worker._calls[call].__class__(ended=asyncio.get_running_loop().create_future(), answer=None)
    await worker.send_raw(encode_message(FrameKind.START, 9_999, start(component, has_body=True)))
    await worker.send_raw(encode_frame(FrameKind.CANCEL, 9_999))
    await worker.send_raw(encode_frame(FrameKind.BODY, 9_999, b"x"))

    assert (await worker.end_of(9_999)).kind == "limit"


async def test_cancel__of_a_call_that_is_not_there__is_ignored(worker: WorkerDriver) -> None:
    await worker.cancel(123_456)

    assert (await worker.call("hello")).kind == "completed"


async def test_component__not_loaded_dropped_or_broken__is_an_error_of_ours(worker: WorkerDriver) -> None:
    assert "was not sent" in (await worker.call(77)).done.internal_error
    component = await worker.load("hello")
    await worker.drop(component)
    assert "not loaded" in (await worker.call(component)).done.internal_error
    garbage = await worker.load_bytes(b"\x7fELF" + bytes(5_000))
    assert "WasmtimeError" in (await worker.call(garbage)).done.internal_error


async def test_artifact__unsealed_or_of_another_size__is_not_mapped(worker: WorkerDriver) -> None:
    compiled = guests.compiled("hello")
    artifact = compiled.artifact
    unsealed = await worker.load_bytes(artifact, seals=0)
    short = await worker.load_bytes(artifact, size=len(artifact) - 1)

    assert "not sealed" in (await worker.call(unsealed)).done.internal_error
    assert "another size" in (await worker.call(short)).done.internal_error
    assert (await worker.call(await worker.load_compiled(compiled))).kind == "completed"


async def test_limits__of_the_start_frame__are_in_force(worker: WorkerDriver) -> None:
    grown = await worker.call("grow_memory", memory_bytes=10 * 65_536)
    assert int.from_bytes(grown.body or b"", "little") == 10
    assert (await worker.call("spin_forever", fuel=100_000)).limit == "fuel"
    assert (await worker.call("spin_forever", cpu_time_us=50_000)).limit == "cpu_time"
    assert (await worker.call("echo", body=b"xxx", response_bytes=2)).limit == "response_size"
    assert (await worker.call("ask_for_ever", host_calls=3, answer=lambda _f, _a: None)).limit == "host_calls"
    flooded = await worker.call("log_flood", log_lines=3, log_bytes=100_000)
    assert len(flooded.lines) == 3
    assert flooded.done.log_lines_dropped == 997


async def test_fuel_off__engine_of_another_fingerprint__counts_none(zygote: Zygote) -> None:
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig(fuel=False))) as worker:
        assert worker.hello.engine_fingerprint == engine_fingerprint(EngineProfile(fuel=False))
        wrong = await worker.load("hello")
        assert "WasmtimeError" in (await worker.call(wrong)).done.internal_error
        right = await worker.load_compiled(compile_component(guests.component("hello"), EngineProfile(fuel=False)))
        ended = await worker.call(right, fuel=0)

    assert (ended.kind, ended.done.fuel) == ("completed", 0)


async def test_end_of_the_socket__with_loops_running__ends_the_process(zygote: Zygote) -> None:
    forked = await zygote.fork_worker(WorkerConfig())
    async with WorkerDriver(forked) as worker:
        for _ in range(4):
            await worker.begin("spin_forever", wall_time_us=30_000_000, cpu_time_us=30_000_000)

    assert await forked.wait_exit() == EXIT_CLOSED


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(FrameKind.DONE, 1),
        encode_frame(FrameKind.LOAD, 0, b""),
        encode_frame(FrameKind.BODY, 5, b"x"),
        b"\xff" * 13,
    ],
)
async def test_daemon_that_breaks_the_protocol__the_worker_ends(zygote: Zygote, data: bytes) -> None:
    forked = await zygote.fork_worker(WorkerConfig())
    async with WorkerDriver(forked) as worker:
        await worker.send_raw(data)
        assert await asyncio.wait_for(forked.wait_exit(), 10) == EXIT_PROTOCOL


async def test_pinned__to_a_processor__stays_there(zygote: Zygote) -> None:
    cpu = max(os.sched_getaffinity(0))
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig(cpu=cpu))) as worker:
        status = status_of(worker.process.pid)

    assert f"Cpus_allowed_list:\t{cpu}\n" in status


async def test_host_call__of_arguments_that_are_too_much_together__is_refused_typed_and_no_frame_leaves(worker: WorkerDriver) -> None:
    """Each argument is within its shape; a frame of all of them is one that the daemon kills a worker for."""
    ended = await worker.call("put_fat", capabilities=[*ALWAYS, "storage.kv"], memory_bytes=128 * MIB)

    assert ended.done.completed.status == 502  # 500 + case 2, "invalid"
    assert ended.host_calls == []
    assert (await worker.call("hello")).body == b"hello"
