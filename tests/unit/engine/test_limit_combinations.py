"""Every limit on, off, zero, absent and above its ceiling: from the wish of a request to what holds in the store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest

from extrunner.worker.v1 import worker_pb2
from registry.domain.limits import OPERATOR_CEILING, ExecutionLimits, LimitWishes, clamp
from runnerd.dispatch.request import GuestRequest
from runnerd.dispatch.start import Invocation, build_start
from runnerd.engine import limits as maxima
from runnerd.engine.invocation import LoadedComponent
from runnerd.engine.limits import InvocationLimits
from runnerd.engine.outcomes import Completed, LimitExceeded, LimitKind, Outcome, TrapKind, Trapped
from runnerd.engine.profile import MAX_MEMORY_BYTES
from runnerd.worker.loop import limits_of
from tests.fakes import guests
from tests.fakes.capabilities import make_grant
from tests.fakes.dispatch_kit import make_extension
from tests.fakes.engine_kit import MIB, EngineKit, limits, post

# --- from the request to the worker ----------------------------------------------------------------------------------------------------

DEFAULT, CEILING = 500, 1_000
LAYERS = [
    # grant, wish, what holds
    (None, None, 500),
    (None, 0, 0),
    (None, 499, 499),
    (None, 500, 500),
    (None, 501, 500),
    (None, 2**62, 500),
    (0, None, 0),
    (0, 250, 0),
    (1, None, 1),
    (250, None, 250),
    (250, 200, 200),
    (250, 300, 250),
    (750, None, 750),
    (750, 0, 0),
    (750, 700, 700),
    (750, 800, 750),
    (1_000, 1_000, 1_000),
    (1_001, None, 1_000),
    (1_001, 1_001, 1_000),
    (2**62, 2**62, 1_000),
]
IN_THE_WORKER: Mapping[str, Callable[[InvocationLimits], float]] = {
    "wall_time_ms": lambda found: found.wall_seconds * 1_000,
    "cpu_time_ms": lambda found: found.cpu_seconds * 1_000,
    "fuel": lambda found: found.fuel,
    "memory_bytes": lambda found: found.memory_bytes,
    "response_bytes": lambda found: found.response_bytes,
    "host_calls": lambda found: found.host_calls,
    "log_lines": lambda found: found.log_lines,
    "log_bytes": lambda found: found.log_bytes,
}
KEPT_BY_THE_DAEMON = {"request_bytes", "storage_namespaces", "storage_keys", "storage_value_bytes", "storage_bytes"}


def all_of(value: int) -> ExecutionLimits:
    return ExecutionLimits(**{field.name: value for field in fields(ExecutionLimits)})


def started(chosen: ExecutionLimits) -> worker_pb2.Start:
    """Return the Start frame of a call with these limits."""
    http = GuestRequest(method="GET", path="/", query="", headers=(), body=None)
    invocation = Invocation(extension=make_extension(), grant=make_grant(), limits=chosen, http=http, deadline=0.0)
    return build_start(invocation, component=1, wall_time_us=chosen.wall_time_ms * 1_000)


@pytest.mark.parametrize(("granted", "wished", "holds"), LAYERS)
def test_each_limit__in_every_layer__reaches_the_worker_as_it_holds(granted: int | None, wished: int | None, holds: int) -> None:
    for field in fields(ExecutionLimits):
        grant, wishes = LimitWishes(**{field.name: granted}), LimitWishes(**{field.name: wished})
        chosen = clamp(defaults=all_of(DEFAULT), ceiling=all_of(CEILING), grant=grant, wishes=wishes)

        # The others stay what they were.
        assert chosen == replace(all_of(DEFAULT), **{field.name: holds})
        if field.name not in KEPT_BY_THE_DAEMON:
            assert IN_THE_WORKER[field.name](limits_of(started(chosen))) == holds


def test_each_limit__of_the_start_frame__is_bounded_by_the_workers_own_maximum() -> None:
    found = limits_of(started(all_of(2**31)))

    assert found == InvocationLimits(
        wall_seconds=maxima.MAX_WALL_SECONDS,
        cpu_seconds=maxima.MAX_WALL_SECONDS,
        fuel=2**31,
        memory_bytes=MAX_MEMORY_BYTES,
        response_bytes=maxima.MAX_RESPONSE_BYTES,
        host_calls=maxima.MAX_HOST_CALLS,
        log_lines=maxima.MAX_LOG_LINES,
        log_bytes=maxima.MAX_LOG_BYTES,
    )


def test_the_operators_ceiling__is_within_what_a_worker_allows() -> None:
    """A limit that the operator may grant and a worker cuts would be a promise that nobody keeps."""
    found = limits_of(started(OPERATOR_CEILING))

    assert {name: read(found) for name, read in IN_THE_WORKER.items()} == {name: getattr(OPERATOR_CEILING, name) for name in IN_THE_WORKER}


# --- from the worker to the guest ------------------------------------------------------------------------------------------------------

SMALLEST_MEMORY = 2 * 64 * 1024
"""What the guests of these tests begin with."""
AMPLE_FUEL = 10_000_000_000
COMBINATIONS = [
    {"wall_seconds": wall, "cpu_seconds": cpu, "memory_bytes": memory, "fuel": fuel, "host_calls": host_calls}
    for wall, cpu, memory, fuel, host_calls in itertools.product(
        (0.0, 30.0), (0.0, 30.0), (0, SMALLEST_MEMORY - 1, 64 * MIB), (0, 40_000, AMPLE_FUEL), (0, 3, 10_000)
    )
]


def ends(chosen: dict[str, Any]) -> tuple[LimitKind, int]:
    """Say which limit ends a guest that asks its host without end, and what was allowed: the first that is too small."""
    if not chosen["wall_seconds"]:
        return LimitKind.WALL_TIME, 0
    if not chosen["cpu_seconds"]:
        return LimitKind.CPU_TIME, 0
    if chosen["memory_bytes"] < SMALLEST_MEMORY:
        return LimitKind.MEMORY, chosen["memory_bytes"]
    if not chosen["fuel"] or (chosen["fuel"] < AMPLE_FUEL and chosen["host_calls"] == 10_000):
        return LimitKind.FUEL, chosen["fuel"]
    return LimitKind.HOST_CALLS, chosen["host_calls"]


def test_every_combination__the_first_limit_that_is_too_small_is_named_with_its_figures(kit: EngineKit) -> None:
    wrong: list[object] = []
    for chosen in COMBINATIONS:
        ran = kit.run("ask_for_ever", within=limits(**chosen), answer=lambda _f, _a: (None, None))
        outcome = ran.outcome
        limit, allowed = ends(chosen)
        right = isinstance(outcome, LimitExceeded) and (outcome.limit, outcome.allowed) == (limit, allowed) and outcome.used >= allowed
        if not right or ran.finished.fuel > chosen["fuel"] or len(ran.port.calls) > chosen["host_calls"]:
            wrong.append((chosen, outcome, ran.finished.fuel))

    assert wrong == []


@pytest.mark.parametrize("allowed", [0, 1, 4, 5, 2**40])
def test_response__of_five_bytes(kit: EngineKit, allowed: int) -> None:
    outcome: Outcome = kit.run("hello", within=limits(response_bytes=allowed).bounded()).outcome

    expected = LimitExceeded(limit=LimitKind.RESPONSE_SIZE, used=5, allowed=allowed)
    assert isinstance(outcome, Completed) if allowed >= 5 else outcome == expected


def test_response__of_nothing__fits_a_limit_of_nothing(kit: EngineKit) -> None:
    assert isinstance(kit.run("log_flood", within=limits(response_bytes=0)).outcome, Completed)


@pytest.mark.parametrize(
    ("lines", "size", "kept"),
    [
        (0, 0, []),
        (0, 2**40, []),
        (2**20, 0, []),
        (1, 1, [1]),
        (1, 2**40, [8192]),
        (2, 10_000, [8192, 1808]),
        (2**20, 1, [1]),
        (2**20, 2**40, [8192] * (maxima.MAX_LOG_BYTES // 8192)),
    ],
)
def test_log__of_a_thousand_lines(kit: EngineKit, lines: int, size: int, kept: list[int]) -> None:
    ran = kit.run("log_flood", within=limits(log_lines=lines, log_bytes=size).bounded())

    assert isinstance(ran.outcome, Completed)
    assert [len(line.message) for line in ran.lines] == kept
    assert ran.call.journal.dropped == 1000 - len(kept)


def test_host_calls__above_the_workers_maximum__end_there(kit: EngineKit) -> None:
    within = limits(host_calls=2**40, wall_seconds=30.0, cpu_seconds=30.0).bounded()
    outcome = kit.run("ask_for_ever", within=within, grants=frozenset()).outcome

    assert outcome == LimitExceeded(limit=LimitKind.HOST_CALLS, used=maxima.MAX_HOST_CALLS + 1, allowed=maxima.MAX_HOST_CALLS)


@pytest.mark.parametrize(("guest", "memories"), [("grow_memory", 1), ("two_memories", 2), ("three_memories", 3), ("four_memories", 4)])
@pytest.mark.parametrize("mebibytes", [1, 7, 64])
def test_memory__of_several__is_a_sum(kit: EngineKit, guest: str, memories: int, mebibytes: int) -> None:
    loaded: LoadedComponent = kit.load(guest)
    body = kit.run(loaded, within=limits(memory_bytes=mebibytes * MIB)).outcome.body
    pages = mebibytes * 16

    # Nothing of the sum is given away but what does not divide.
    mine = 1 if guest == "two_memories" else memories
    assert loaded.memories == memories == guests.compiled(guest, bridge=kit.bridge).memories
    assert int.from_bytes(body, "little") == pages // memories * mine


def test_large_request__beside_a_small_memory__is_the_memory_limit_where_that_can_be_seen(kit: EngineKit) -> None:
    outcome: Outcome = kit.run("echo", post(b"\xff" * MIB), within=limits(memory_bytes=512 * 1024)).outcome

    if kit.bridge:
        assert isinstance(outcome, LimitExceeded)
        assert (outcome.limit, outcome.allowed) == (LimitKind.MEMORY, 512 * 1024)
        assert outcome.used >= outcome.allowed
    else:
        # There the guest's allocator aborts, and the conversion of the body drowns what it has touched.
        assert isinstance(outcome, Trapped)
        assert outcome.kind is TrapKind.UNREACHABLE
