"""T4: whoever escaped into a worker writes any frame it likes. Each violation ends in a killed worker, bounded memory, no effect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from extrunner.worker.v1 import worker_pb2
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MIB, LimitWishes
from runnerd.capabilities.catalog import BY_NAME
from runnerd.capabilities.values import arguments_to_wire
from runnerd.dispatch.connection import NotHardenedError, UnusableWorkerError
from runnerd.dispatch.outcome import Completed, LimitExceeded, LimitKind
from runnerd.worker.frames import HEADER, FrameKind, encode_frame
from runnerd.worker.settings import EXIT_HARDENING
from tests.fakes.dispatch_kit import OTHER_TENANT, POOL, TENANT, Kit, dispatching, eventually, make_request
from tests.fakes.fake_worker import WorkerEnd, echo, scripted
from tests.fakes.resident_memory import peak_growth

PUT = BY_NAME["alga:extension/storage", "put"]
FETCH = BY_NAME["alga:extension/http", "fetch"]
Attack = Callable[[WorkerEnd, int], Awaitable[None]]


def put_call(key: str = "k") -> worker_pb2.HostCall:
    entry = {"namespace": "n", "key": key, "value": b"stolen", "revision": None}
    return worker_pb2.HostCall(function=PUT.number, arguments=arguments_to_wire(PUT, (entry,)))


def log_frame(lines: int = 1, text: str = "x", level: str = "info") -> worker_pb2.Log:
    return worker_pb2.Log(lines=[worker_pb2.LogLine(level=level, message=text)] * lines)


async def unknown_call(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.HOST_CALL, call_id ^ 1, put_call())


async def two_at_once(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.HOST_CALL, call_id, put_call("one"))
    await worker.say(FrameKind.HOST_CALL, call_id, put_call("two"))


async def ungranted(worker: WorkerEnd, call_id: int) -> None:
    request: dict[str, object] = {"method": "GET", "url": "http://169.254.169.254/", "headers": [], "body": None}
    await worker.say(
        FrameKind.HOST_CALL, call_id, worker_pb2.HostCall(function=FETCH.number, arguments=arguments_to_wire(FETCH, (request,)))
    )


async def local_function(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.HOST_CALL, call_id, worker_pb2.HostCall(function=BY_NAME["alga:extension/context", "get-context"].number))


async def no_such_function(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.HOST_CALL, call_id, worker_pb2.HostCall(function=9999))


async def wrong_arguments(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.HOST_CALL, call_id, worker_pb2.HostCall(function=PUT.number, arguments=[worker_pb2.Value(text="no record")]))


async def four_gib(worker: WorkerEnd, call_id: int) -> None:
    await worker.write(HEADER.pack(0xFFFFFFFF, FrameKind.DONE, call_id))


async def unknown_kind(worker: WorkerEnd, call_id: int) -> None:
    await worker.write(HEADER.pack(0, 200, call_id))


async def frame_of_the_daemon(worker: WorkerEnd, call_id: int) -> None:
    await worker.write(encode_frame(FrameKind.START, call_id))


async def body_out_of_nothing(worker: WorkerEnd, call_id: int) -> None:
    await worker.write(encode_frame(FrameKind.BODY, call_id, b"x"))


async def body_of_another_call(worker: WorkerEnd, call_id: int) -> None:
    done = worker_pb2.Done(completed=worker_pb2.Completed(status=200, has_body=True))
    await worker.say(FrameKind.DONE, call_id, done)
    await worker.write(encode_frame(FrameKind.BODY, call_id ^ 1, b"x"))


async def part_of_a_body_for_nothing(worker: WorkerEnd, call_id: int) -> None:
    """31 MiB that would be held until the last byte came, which never does."""
    await worker.write(HEADER.pack(32 * MIB, FrameKind.BODY, call_id) + bytes(MIB))


async def part_of_a_body_larger_than_the_call_may_answer(worker: WorkerEnd, call_id: int) -> None:
    done = worker_pb2.Done(completed=worker_pb2.Completed(status=200, has_body=True))
    await worker.say(FrameKind.DONE, call_id, done)
    await worker.write(HEADER.pack(32 * MIB, FrameKind.BODY, call_id) + bytes(MIB))


async def part_of_a_host_call_of_nobody(worker: WorkerEnd, call_id: int) -> None:
    await worker.write(HEADER.pack(10 * MIB, FrameKind.HOST_CALL, call_id ^ 1) + bytes(MIB))


async def second_hello(worker: WorkerEnd, _call_id: int) -> None:
    await worker.greet()


async def not_a_message(worker: WorkerEnd, call_id: int) -> None:
    await worker.write(encode_frame(FrameKind.DONE, call_id, b"\xff\xff\xff"))


async def empty_done(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.DONE, call_id, worker_pb2.Done())


async def merged_done(worker: WorkerEnd, call_id: int) -> None:
    one = worker_pb2.Done(completed=worker_pb2.Completed(status=200)).SerializeToString()
    await worker.write(encode_frame(FrameKind.DONE, call_id, one + one))


async def lies_about_fuel(worker: WorkerEnd, call_id: int) -> None:
    await worker.complete(call_id, fuel=2**62)


async def invented_capability(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.LOG, call_id, worker_pb2.Log(denied_capabilities=["root.everything"]))


async def denial_of_what_is_in_force(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.LOG, call_id, worker_pb2.Log(denied_capabilities=["storage.kv"]))


async def denials_without_end(worker: WorkerEnd, call_id: int) -> None:
    for _ in range(1_000_000):
        await worker.say(FrameKind.LOG, call_id, worker_pb2.Log(denied_capabilities=["http.fetch"]))


async def invented_trap(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.DONE, call_id, worker_pb2.Done(trapped=worker_pb2.GuestTrap(kind="nonsense")))


async def log_flood(worker: WorkerEnd, call_id: int) -> None:
    for _ in range(1_000_000):
        await worker.say(FrameKind.LOG, call_id, log_frame(16, "y" * 500))


async def empty_logs(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.LOG, call_id, worker_pb2.Log())


async def invented_level(worker: WorkerEnd, call_id: int) -> None:
    await worker.say(FrameKind.LOG, call_id, log_frame(level="root"))


ATTACKS: list[Attack] = [
    unknown_call,
    two_at_once,
    ungranted,
    local_function,
    no_such_function,
    wrong_arguments,
    four_gib,
    unknown_kind,
    frame_of_the_daemon,
    body_out_of_nothing,
    body_of_another_call,
    part_of_a_body_for_nothing,
    part_of_a_body_larger_than_the_call_may_answer,
    part_of_a_host_call_of_nobody,
    second_hello,
    not_a_message,
    empty_done,
    merged_done,
    lies_about_fuel,
    invented_capability,
    denial_of_what_is_in_force,
    denials_without_end,
    invented_trap,
    log_flood,
    empty_logs,
    invented_level,
]


def attacking(attack: Attack) -> Callable[[WorkerEnd], Awaitable[None]]:
    async def script(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        await attack(worker, call_id)
        while True:
            await worker.next_frame()

    return script


async def execute(kit: Kit, **changes: Any) -> Any:
    return await kit.executor.execute(kit.caller, make_request(**changes), deadline=None)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_violation__kills_the_worker_and_has_no_effect(attack: Attack) -> None:
    fork, made = scripted(attacking(attack))
    async with dispatching(fork) as kit:
        kit.broker.gate = asyncio.Event()
        with pytest.raises(RefusalError) as refused:
            await execute(kit)
        assert refused.value.reason is Reason.WORKER_CRASHED
        assert refused.value.metadata == {"started": "true"}
        assert made[0].killed
        await eventually(lambda: kit.metric("worker_restarts_total", {"cause": "violation"}) == 1)
        kit.broker.gate.set()
        await asyncio.sleep(0)
        assert not kit.broker.stored
        # The daemon goes on: the next call gets another worker.
        result = await execute(kit, body=b"again")
        assert isinstance(result.outcome, Completed)
        assert result.outcome.body == b"again"
        assert [record.outcome for record in kit.recorder.records] == ["error", "completed"]


async def test_host_call_for_a_finished_call__kills_the_worker() -> None:
    async def script(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        await worker.complete(call_id)
        await worker.say(FrameKind.HOST_CALL, call_id, put_call())
        await worker.next_frame()

    fork, made = scripted(script)
    async with dispatching(fork) as kit:
        result = await execute(kit)
        assert isinstance(result.outcome, Completed)
        await eventually(lambda: made[0].killed)
        assert not kit.broker.calls


async def test_host_call_for_another_workers_call__kills_the_forger_and_leaves_the_victim() -> None:
    victims_call: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    release = asyncio.Event()

    async def victim(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, start = await worker.next_start()
        assert start.tenant_id == TENANT
        victims_call.set_result(call_id)
        await release.wait()
        await worker.complete(call_id, body=b"unharmed")
        await worker.next_frame()

    async def forger(worker: WorkerEnd) -> None:
        await worker.greet()
        await worker.next_start()
        await worker.say(FrameKind.HOST_CALL, await victims_call, put_call())
        await worker.next_frame()

    fork, made = scripted(victim, forger)
    async with dispatching(fork) as kit:
        suffering = asyncio.create_task(execute(kit))
        await victims_call
        with pytest.raises(RefusalError) as refused:
            await execute(kit, tenant_id=OTHER_TENANT)
        assert refused.value.reason is Reason.WORKER_CRASHED
        release.set()
        result = await suffering
        assert result.outcome.body == b"unharmed"
        assert made[1].killed
        assert not made[0].killed
        assert not kit.broker.calls


async def test_done_for_another_workers_call__does_not_answer_it() -> None:
    victims_call: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def victim(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        victims_call.set_result(call_id)
        await worker.next_of(FrameKind.CANCEL)
        await worker.say(FrameKind.DONE, call_id, worker_pb2.Done(limit=worker_pb2.GuestLimit(limit="wall_time", used=1, allowed=1)))
        await worker.next_frame()

    async def forger(worker: WorkerEnd) -> None:
        await worker.greet()
        await worker.next_start()
        await worker.complete(await victims_call, body=b"forged")
        await worker.next_frame()

    fork, _ = scripted(victim, forger)
    async with dispatching(fork, defaults=LimitWishes(wall_time_ms=400)) as kit:
        suffering = asyncio.create_task(execute(kit))
        await victims_call
        with pytest.raises(RefusalError):
            await execute(kit, tenant_id=OTHER_TENANT)
        outcome = (await suffering).outcome
        assert isinstance(outcome, LimitExceeded)
        assert outcome.limit is LimitKind.WALL_TIME


async def test_host_calls_beyond_the_limit__kill_the_worker() -> None:
    async def script(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, start = await worker.next_start()
        assert start.host_calls == 3
        for index in range(4):
            await worker.say(FrameKind.HOST_CALL, call_id, put_call(str(index)))
            await worker.next_of(FrameKind.HOST_REPLY)

    fork, made = scripted(script)
    async with dispatching(fork, defaults=LimitWishes(host_calls=3)) as kit:
        with pytest.raises(RefusalError):
            await execute(kit)
        assert made[0].killed
        assert len(kit.broker.stored) == 3


async def test_worker_that_never_reads__is_killed_with_bounded_memory() -> None:
    async def script(worker: WorkerEnd) -> None:
        await worker.greet()
        await asyncio.Event().wait()

    async def brief(worker: WorkerEnd) -> None:
        await worker.greet()
        while True:
            await worker.complete((await worker.next_start())[0])

    fork, made = scripted(script, then=brief)
    body = bytes(8 * MIB)
    async with dispatching(fork, defaults=LimitWishes(wall_time_ms=20_000)) as kit:
        with peak_growth() as grown:
            calls = [asyncio.create_task(execute(kit, body=body)) for _ in range(4)]
            ended = await asyncio.gather(*calls, return_exceptions=True)
        assert made[0].killed
        # Calls that had only waited went to the next worker; the one whose bytes had begun to leave is never sent twice.
        crashed = [error for error in ended if isinstance(error, RefusalError)]
        assert [error.reason for error in crashed] == [Reason.WORKER_CRASHED]
        assert grown.bytes < 64 * MIB


async def test_flood_of_tiny_frames__memory_stays_bounded() -> None:
    async def script(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        frame = encode_frame(FrameKind.LOG, call_id, log_frame(1, "z").SerializeToString())
        for _ in range(1000):
            await worker.write(frame * 1000)

    fork, made = scripted(script)
    async with dispatching(fork) as kit:
        with peak_growth() as grown, pytest.raises(RefusalError):
            await execute(kit)
        assert made[0].killed
        assert grown.bytes < 32 * MIB


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"protocol_version": 99}, UnusableWorkerError),
        # What a worker says about itself is not what decides the daemon's exit status.
        ({"build": "hardening"}, UnusableWorkerError),
        ({"engine_fingerprint": "0" * 64}, UnusableWorkerError),
        ({"slots": 0}, UnusableWorkerError),
        ({"slots": 100_000}, UnusableWorkerError),
        ({"hardening_applied": ["no_new_privs"], "hardening_missing": {"seccomp": "EINVAL"}}, NotHardenedError),
    ],
    ids=str,
)
async def test_unusable_hello__worker_is_not_used(changes: dict[str, Any], error: type[UnusableWorkerError]) -> None:
    async def script(worker: WorkerEnd) -> None:
        await worker.greet(**changes)
        await worker.next_frame()

    fork, made = scripted(script)
    settings = replace(POOL, mandatory_hardening=frozenset({"no_new_privs", "seccomp"}))
    with pytest.raises(UnusableWorkerError) as refused:
        async with dispatching(fork, pool=settings):
            pass
    assert type(refused.value) is error
    assert made[0].killed


@pytest.mark.parametrize(("status", "error"), [(EXIT_HARDENING, NotHardenedError), (1, UnusableWorkerError)])
async def test_worker_that_ends_before_its_hello__says_by_its_status_whether_hardening_failed(
    status: int, error: type[UnusableWorkerError]
) -> None:
    async def script(_worker: WorkerEnd) -> None:
        made[0].exit_status = status

    fork, made = scripted(script)
    with pytest.raises(UnusableWorkerError) as refused:
        async with dispatching(fork):
            pass
    assert type(refused.value) is error


async def test_frame_before_hello__worker_is_not_used() -> None:
    async def script(worker: WorkerEnd) -> None:
        await worker.say(FrameKind.LOG, 1, log_frame())
        await worker.next_frame()

    fork, made = scripted(script)
    with pytest.raises(UnusableWorkerError):
        async with dispatching(fork):
            pass
    assert made[0].killed


async def test_late_answer__is_wall_time_whatever_it_says() -> None:
    async def script(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        await worker.next_of(FrameKind.CANCEL)
        await worker.complete(call_id, body=b"too late")
        await worker.next_frame()

    fork, made = scripted(script)
    async with dispatching(fork, defaults=LimitWishes(wall_time_ms=50)) as kit:
        outcome = (await execute(kit)).outcome
        assert isinstance(outcome, LimitExceeded)
        assert (outcome.limit, outcome.allowed) == (LimitKind.WALL_TIME, 50)
        assert not made[0].killed


async def test_call_that_does_not_end__backstop_kills_after_its_neighbours_ended() -> None:
    both: list[int] = []

    async def script(worker: WorkerEnd) -> None:
        await worker.greet()
        for _ in range(2):
            call_id, _ = await worker.next_start()
            both.append(call_id)
        # The first never ends; the second ends while the worker is on its way out.
        await worker.next_of(FrameKind.CANCEL)
        await asyncio.sleep(0.15)
        await worker.complete(both[1], body=b"bystander")
        while True:
            await worker.next_frame()

    fork, made = scripted(script)
    async with dispatching(fork, pool=replace(POOL, spread=1)) as kit:
        stuck = asyncio.create_task(execute(kit, wishes=LimitWishes(wall_time_ms=50)))
        await eventually(lambda: len(both) == 1)
        neighbour = asyncio.create_task(execute(kit))
        outcome = (await stuck).outcome
        assert isinstance(outcome, LimitExceeded)
        assert (await neighbour).outcome.body == b"bystander"
        await eventually(lambda: made[0].killed)
        assert kit.metric("worker_restarts_total", {"cause": "backstop"}) == 1
        assert isinstance((await execute(kit)).outcome, Completed)


async def test_host_call_after_the_deadline__has_no_effect() -> None:
    async def script(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        await worker.next_of(FrameKind.CANCEL)
        await worker.say(FrameKind.HOST_CALL, call_id, put_call())
        await worker.next_of(FrameKind.HOST_REPLY)
        await worker.complete(call_id)
        await worker.next_frame()

    fork, made = scripted(script)
    async with dispatching(fork, defaults=LimitWishes(wall_time_ms=50)) as kit:
        await execute(kit)
        assert not kit.broker.calls
        assert made[0].end.replies[0][1].error == "internal"


async def test_crash_loop_at_start__does_not_spin() -> None:
    async def dies(worker: WorkerEnd) -> None:
        await worker.greet(build="another")

    fork, made = scripted(echo, then=dies)
    async with dispatching(fork) as kit:
        await execute(kit)
        made[0].kill()
        await eventually(lambda: not kit.pool.workers)
        with pytest.raises(RefusalError) as refused:
            await asyncio.wait_for(execute(kit), 5)
        assert refused.value.reason is Reason.OVERLOADED
        # Two seconds of waiting; starts are spaced by growing pauses.
        assert len(made) < 20
