from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerd.capabilities.shapes import DATA_BYTES
from runnerd.engine.limits import (
    MAX_HOST_CALLS,
    MAX_LOG_BYTES,
    MAX_LOG_LINES,
    MAX_RESPONSE_BYTES,
    MAX_WALL_SECONDS,
    ORDINARY_PATH_BYTES,
    InvocationLimits,
)
from runnerd.engine.outcomes import Completed, LimitExceeded, LimitKind, TrapKind
from runnerd.engine.profile import MAX_MEMORY_BYTES, MAX_TABLE_ELEMENTS
from tests.fakes import guests
from tests.fakes.engine_kit import ALWAYS, MIB, EngineKit, Ran, limits, post

PAGE = 65_536


def number(body: bytes) -> int:
    return int.from_bytes(body, "little")


@pytest.mark.parametrize("pages", [3, 16, 1024, 4096])
def test_memory__grown_to_refusal__is_exactly_the_cap(kit: EngineKit, pages: int) -> None:
    outcome = kit.run("grow_memory", within=limits(memory_bytes=pages * PAGE)).outcome

    assert number(outcome.body) == pages


def test_memory__cap_that_is_no_whole_page__is_rounded_down(kit: EngineKit) -> None:
    assert number(kit.run("grow_memory", within=limits(memory_bytes=5 * PAGE - 1)).outcome.body) == 4


def test_memory__two_memories__share_the_cap(kit: EngineKit) -> None:
    assert number(kit.run("two_memories", within=limits(memory_bytes=64 * PAGE)).outcome.body) == 32


def test_memory__smaller_than_the_component_needs__is_a_limit(kit: EngineKit) -> None:
    outcome = kit.run("hello", within=limits(memory_bytes=PAGE)).outcome

    assert isinstance(outcome, LimitExceeded)
    assert outcome.limit is LimitKind.MEMORY


def test_memories__more_than_were_counted__do_not_instantiate(kit: EngineKit) -> None:
    outcome = kit.run(kit.load_compiled(guests.compiled("two_memories", bridge=kit.bridge), memories=1)).outcome

    assert outcome.kind is TrapKind.INSTANTIATION


def test_memory__ceiling__can_be_granted(kit: EngineKit) -> None:
    assert number(kit.run("grow_memory", within=limits(memory_bytes=MAX_MEMORY_BYTES)).outcome.body) == MAX_MEMORY_BYTES // PAGE


def test_table__grown_to_refusal__stays_below_the_cap(kit: EngineKit) -> None:
    assert MAX_TABLE_ELEMENTS - 1_000 < number(kit.run("table_growth").outcome.body) <= MAX_TABLE_ELEMENTS


def test_response__at_two_mebibytes__passes_and_one_byte_more_does_not(kit: EngineKit) -> None:
    assert len(kit.run("respond_2_mib", post(b"")).outcome.body) == 2 * MIB
    assert kit.run("respond_2_mib", post(b"x")).outcome == LimitExceeded(limit=LimitKind.RESPONSE_SIZE, used=2 * MIB + 1, allowed=2 * MIB)


@pytest.mark.parametrize(("size", "passes"), [(99, True), (100, True), (101, False)])
def test_response__own_limit__is_kept(kit: EngineKit, size: int, passes: bool) -> None:
    outcome = kit.run("echo", post(b"x" * size), within=limits(response_bytes=100)).outcome

    expected = LimitExceeded(limit=LimitKind.RESPONSE_SIZE, used=101, allowed=100)
    assert isinstance(outcome, Completed) if passes else outcome == expected


def test_host_calls__limit__is_kept(kit: EngineKit) -> None:
    ran = kit.run("ask_for_ever", within=limits(host_calls=7), answer=lambda _f, _a: (None, None))

    assert ran.outcome == LimitExceeded(limit=LimitKind.HOST_CALLS, used=8, allowed=7)
    assert len(ran.port.calls) == 7


def test_host_calls__of_a_denied_capability__count_as_well(kit: EngineKit) -> None:
    ran = kit.run("ask_for_ever", within=limits(host_calls=7), grants=frozenset())

    assert ran.outcome.limit is LimitKind.HOST_CALLS
    assert ran.port.calls == []
    assert ran.call.denied == {"config.read"}


def test_log__flood__is_cut_to_the_limits(kit: EngineKit) -> None:
    ran = kit.run("log_flood", within=limits(log_lines=256, log_bytes=64 * 1024))

    assert isinstance(ran.outcome, Completed)
    assert [len(line.message) for line in ran.lines] == [8192] * 8
    assert all(line.truncated and line.level == "warn" for line in ran.lines)
    assert ran.call.journal.dropped == 992


def test_wall_time__passed_before_the_start__never_runs_the_guest(kit: EngineKit) -> None:
    outcome = kit.run("hello", within=limits(wall_seconds=0.0)).outcome

    assert isinstance(outcome, LimitExceeded)
    assert outcome.limit is LimitKind.WALL_TIME


def test_denied__function_with_an_error__answers_its_case(kit: EngineKit) -> None:
    ran = kit.run("delete_record")

    assert ran.outcome.status == 502  # 500 + case 2, "denied"
    assert ran.call.denied == {"storage.kv"}
    assert ran.port.calls == []


def test_granted__function__reaches_the_host_with_its_arguments(kit: EngineKit) -> None:
    ran = kit.run("delete_record", grants=ALWAYS | {"storage.kv"}, answer=lambda _f, _a: (None, None))

    assert ran.outcome.status == 200
    assert ran.port.calls == [("alga:extension/storage.delete", ["notes", "one"])]


@pytest.mark.parametrize(("case", "status"), [("missing", 500), ("conflict", 501), ("denied", 502), ("internal", 503)])
def test_granted__error_of_the_host__reaches_the_guest(kit: EngineKit, case: str, status: int) -> None:
    ran = kit.run("delete_record", grants=ALWAYS | {"storage.kv"}, answer=lambda _f, _a: (None, case))

    assert ran.outcome.status == status


def put(kit: EngineKit, size: int) -> Ran:
    request = post(size.to_bytes(4, "little"))
    return kit.run("put_bytes", request, grants=ALWAYS | {"storage.kv"}, answer=lambda _f, _a: (7, None))


@pytest.mark.parametrize("size", [0, 1, 2 * MIB])
def test_argument__within_what_both_paths_carry__reaches_the_host(kit: EngineKit, size: int) -> None:
    ran = put(kit, size)

    assert ran.outcome.status == 200
    assert [len(arguments[2]) for _, arguments in ran.port.calls] == [size]  # type: ignore[arg-type]


def test_argument__larger_than_the_ordinary_path_carries__crosses_the_bridge_and_is_a_limit_without_it(kit: EngineKit) -> None:
    ran = put(kit, DATA_BYTES)

    if kit.bridge:
        assert ran.outcome.status == 200
        assert [len(arguments[2]) for _, arguments in ran.port.calls] == [DATA_BYTES]  # type: ignore[arg-type]
    else:
        assert ran.outcome == LimitExceeded(limit=LimitKind.HOST_CALL_SIZE, used=ORDINARY_PATH_BYTES + 1, allowed=ORDINARY_PATH_BYTES)
        assert ran.port.calls == []


def test_argument__larger_than_its_shape_allows__is_refused_typed_without_a_host_call() -> None:
    ran = put(EngineKit(), DATA_BYTES + 1)

    assert ran.outcome.status == 502  # 500 + case 2, "invalid"
    assert ran.port.calls == []


def test_socket__asked_for__is_access_denied(kit: EngineKit) -> None:
    assert kit.run("create_socket").outcome.status == 501  # 500 + case 1, "access-denied"


@given(
    st.builds(
        InvocationLimits,
        wall_seconds=st.floats(0, 1e9),
        cpu_seconds=st.floats(0, 1e9),
        fuel=st.integers(0, 2**63),
        memory_bytes=st.integers(0, 2**63),
        response_bytes=st.integers(0, 2**63),
        host_calls=st.integers(0, 2**32 - 1),
        log_lines=st.integers(0, 2**32 - 1),
        log_bytes=st.integers(0, 2**32 - 1),
    )
)
def test_bounded__any_limits__are_never_raised_and_never_above_the_maxima(asked: InvocationLimits) -> None:
    bounded = asked.bounded()

    assert bounded.wall_seconds <= min(asked.wall_seconds, MAX_WALL_SECONDS)
    assert bounded.cpu_seconds <= min(asked.cpu_seconds, MAX_WALL_SECONDS)
    assert bounded.memory_bytes <= min(asked.memory_bytes, MAX_MEMORY_BYTES)
    assert bounded.response_bytes <= min(asked.response_bytes, MAX_RESPONSE_BYTES)
    assert bounded.host_calls <= min(asked.host_calls, MAX_HOST_CALLS)
    assert bounded.log_lines <= min(asked.log_lines, MAX_LOG_LINES)
    assert bounded.log_bytes <= min(asked.log_bytes, MAX_LOG_BYTES)
    assert bounded.memory_cap(3) * 3 <= bounded.memory_bytes
