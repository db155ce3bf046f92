from __future__ import annotations

import threading
import time

import pytest

from extrunner.runner.v1 import execution_pb2, limits_pb2
from runnerd.engine.invocation import Finished
from runnerd.engine.outcomes import Completed, GuestError, InternalError, LimitExceeded, LimitKind, Outcome, TrapKind, Trapped
from runnerd.worker.done import done_message
from runnerd.worker.settings import MAX_SLOTS, WorkerConfig
from runnerd.worker.slots import ByteBudget, SlotPool


def test_pool__more_jobs_than_slots__runs_that_many_at_once() -> None:
    pool, running, most, lock, gate = SlotPool(3), 0, 0, threading.Lock(), threading.Semaphore(0)
    finished = threading.Semaphore(0)

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.acquire()
        with lock:
            running -= 1
        finished.release()

    for _ in range(7):
        pool.submit(job)
    for _ in range(7):
        gate.release()
        assert finished.acquire(timeout=10)

    assert most == 3
    assert pool._threads == 3


def test_pool__jobs_one_after_another__need_one_thread() -> None:
    pool = SlotPool(8)
    for _ in range(5):
        done = threading.Event()
        pool.submit(done.set)
        assert done.wait(10)
        while pool._busy:
            time.sleep(0.001)

    assert pool._threads == 1


def test_budget__taken_and_given_back() -> None:
    budget = ByteBudget(100)
    now = time.monotonic()

    assert budget.take(60, deadline=now)
    assert not budget.take(41, deadline=now)
    assert budget.take(40, deadline=now)
    budget.give_back(60)
    assert budget.take(60, deadline=now)


def test_budget__larger_than_everything__waits_until_it_is_alone() -> None:
    budget = ByteBudget(100)
    assert budget.take(1, deadline=0)
    taken = threading.Event()

    def take_everything() -> None:
        if budget.take(10**9, deadline=time.monotonic() + 10):
            taken.set()

    thread = threading.Thread(target=take_everything)
    thread.start()
    assert not taken.wait(0.05)
    budget.give_back(1)
    thread.join()

    assert taken.is_set()
    assert not budget.take(1, deadline=0)
    budget.give_back(10**9)
    assert budget.take(100, deadline=0)


@pytest.mark.parametrize("changes", [{"slots": 0}, {"slots": MAX_SLOTS + 1}, {"memory_bytes": 1}, {"body_bytes_in_flight": 0}])
def test_config__out_of_range__is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"."):
        WorkerConfig(**changes)  # type: ignore[arg-type]


def test_config__through_json__is_the_same() -> None:
    config = WorkerConfig(slots=4, cpu=1, fuel=False, require_hardening=False, user=None)

    assert WorkerConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("value", [None, [], {"slots": 1, "surprise": 2}, "x"])
def test_config__from_something_else__is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a worker's configuration"):
        WorkerConfig.from_json(value)


def finished(outcome: Outcome, **changes: object) -> Finished:
    values: dict[str, object] = {"fuel": 1, "cpu_seconds": 0.5, "wall_seconds": 1.5, "peak_memory_bytes": None}
    return Finished(outcome=outcome, **values | changes)  # type: ignore[arg-type]


def test_done__completed__carries_its_body_apart() -> None:
    done, body = done_message(finished(Completed(status=201, headers=(("a", "b"), ("a", "c")), body=b"x"), peak_memory_bytes=7))

    assert body == b"x"
    assert done.completed.has_body
    assert [(header.name, header.value) for header in done.completed.headers] == [("a", "b"), ("a", "c")]
    assert (done.fuel, done.cpu_time_us, done.wall_time_us, done.peak_memory_bytes) == (1, 500_000, 1_500_000, 7)


@pytest.mark.parametrize("body", [None, b""])
def test_done__empty_and_absent_body__differ(body: bytes | None) -> None:
    done, sent = done_message(finished(Completed(status=200, headers=(), body=body)))

    assert done.completed.has_body is (body is not None)
    assert sent == body
    assert not done.HasField("peak_memory_bytes")


def test_done__other_outcomes() -> None:
    assert done_message(finished(Trapped(kind=TrapKind.ABI, message="m")))[0].trapped.kind == "abi"
    limit = done_message(finished(LimitExceeded(limit=LimitKind.FUEL, used=2, allowed=1)))[0].limit
    assert (limit.limit, limit.used, limit.allowed) == ("fuel", 2, 1)
    assert done_message(finished(GuestError(message="g")))[0].guest_error == "g"
    assert done_message(finished(InternalError(message="i")))[0].internal_error == "i"


def test_kinds__are_those_of_the_public_contract() -> None:
    traps = {name.removeprefix("TRAP_KIND_").lower() for name, _ in execution_pb2.TrapKind.items()} - {"unspecified"}
    kinds = {name.removeprefix("LIMIT_KIND_").lower() for name, _ in limits_pb2.LimitKind.items()} - {"unspecified"}

    assert {str(kind) for kind in TrapKind} == traps
    assert {str(kind) for kind in LimitKind} == kinds
