"""The circuit breaker by a clock of its own: who is blamed, who is paused, and how a pause ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.domain.errors import Reason, RefusalError
from runnerd.dispatch import breaker as module
from runnerd.dispatch.breaker import BreakerSettings, CircuitBreaker, TenantVersion
from runnerd.telemetry.metrics import Metrics

BAD = TenantVersion("tenant-a", "bad")
GOOD = TenantVersion("tenant-a", "good")
ELSEWHERE = TenantVersion("tenant-b", "bad")
SETTINGS = BreakerSettings(incidents=3, window_seconds=600, first_pause_seconds=30, longest_pause_seconds=100)


class Case:
    """A breaker and its clock."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.metrics = Metrics()
        self.breaker = CircuitBreaker(self.metrics, SETTINGS, clock=lambda: self.now)

    def die(self, *suspects: TenantVersion, times: int = 1, every: float = 1.0) -> None:
        for _ in range(times):
            self.breaker.worker_died(frozenset(suspects))
            self.now += every

    def retry_after(self, version: TenantVersion = BAD) -> int:
        with pytest.raises(RefusalError) as refused:
            self.breaker.admit(version)
        assert refused.value.reason is Reason.CIRCUIT_OPEN
        assert refused.value.retry_after_seconds is not None
        return refused.value.retry_after_seconds

    def transitions(self, state: str) -> float:
        return self.metrics.registry.get_sample_value("extrunner_circuit_transitions_total", {"state": state}) or 0.0

    @property
    def gauge(self) -> float | None:
        return self.metrics.registry.get_sample_value("extrunner_circuits_open")


@pytest.fixture
def case() -> Case:
    return Case()


def test_nothing_happened__calls_pass_and_share_workers(case: Case) -> None:
    assert not case.breaker.admit(BAD).alone


def test_third_incident__opens(case: Case) -> None:
    case.die(BAD, times=2)
    assert case.breaker.admit(BAD).alone, "a suspect shares no worker with another version"
    case.die(BAD, every=0)

    assert case.retry_after() == 30
    assert (case.breaker.open, case.gauge, case.transitions("open")) == (1, 1, 1)


def test_incidents_too_far_apart__do_not_open(case: Case) -> None:
    case.die(BAD, times=20, every=301)

    assert case.breaker.admit(BAD).alone
    assert case.breaker.open == 0


def test_open__is_that_tenants_version_only(case: Case) -> None:
    case.die(BAD, times=3)

    assert not case.breaker.admit(ELSEWHERE).alone
    assert not case.breaker.admit(GOOD).alone


def test_several_suspects__nobody_is_blamed_but_all_run_apart(case: Case) -> None:
    case.die(BAD, GOOD, times=10)

    assert case.breaker.admit(BAD).alone
    assert case.breaker.admit(GOOD).alone
    assert case.breaker.open == 0
    case.now += 600
    assert not case.breaker.admit(GOOD).alone


def test_culprit_among_neighbours__alone_from_the_second_time_on_it_is_found(case: Case) -> None:
    case.die(BAD, GOOD)
    case.die(BAD, times=3)

    case.retry_after()
    assert case.breaker.admit(GOOD).alone


def test_pause_over__one_call_tries_and_its_success_closes(case: Case) -> None:
    case.die(BAD, times=3, every=0)
    case.now += 29.5
    assert case.retry_after() == 1
    case.now += 0.5
    with case.breaker.admit(BAD) as trial:
        assert trial.alone
        assert case.retry_after() == 1, "one at a time"
        trial.survived()
        assert case.breaker.open == 0
        assert case.breaker.admit(BAD).alone

    assert case.breaker.admit(BAD).alone
    assert (case.transitions("half_open"), case.transitions("closed"), case.gauge) == (1, 1, 0)


def test_trial_that_dies__pauses_twice_as_long_up_to_a_cap(case: Case) -> None:
    case.die(BAD, times=3, every=0)
    pauses = []
    for _ in range(4):
        pauses.append(case.retry_after())
        case.now += pauses[-1]
        with case.breaker.admit(BAD):
            case.die(BAD, every=0)

    assert pauses == [30, 60, 100, 100]
    assert case.breaker.open == 1


def test_trial_that_ends_in_neither__leaves_the_next_call_to_try(case: Case) -> None:
    case.die(BAD, times=3, every=0)
    case.now += 30
    with pytest.raises(TimeoutError), case.breaker.admit(BAD):
        raise TimeoutError

    with case.breaker.admit(BAD) as trial:
        trial.survived()
    assert case.breaker.open == 0


def test_backstop_after_the_trials_answer__pauses_again(case: Case) -> None:
    case.die(BAD, times=3, every=0)
    case.now += 30
    with case.breaker.admit(BAD):
        pass
    case.die(BAD, every=0)

    assert case.retry_after() == 60


def test_call_from_before_the_pause_that_dies_within__changes_nothing(case: Case) -> None:
    case.die(BAD, times=3, every=0)
    case.now += 10
    case.die(BAD, every=0)

    assert case.retry_after() == 20


def test_success_of_an_ordinary_call__does_not_close(case: Case) -> None:
    before = case.breaker.admit(BAD)
    case.die(BAD, times=3, every=0)
    before.survived()

    case.retry_after()


def test_closed_again__the_next_pause_is_longer_until_it_was_quiet_for_long(case: Case) -> None:
    case.die(BAD, times=3, every=0)
    case.now += 30
    with case.breaker.admit(BAD) as trial:
        trial.survived()
    case.die(BAD, times=3, every=0)
    assert case.retry_after() == 60
    case.now += 60 + 601
    case.die(GOOD)

    case.die(BAD, times=2, every=0)
    assert case.breaker.admit(BAD).alone
    case.die(BAD, every=0)
    assert case.retry_after() == 30


def test_circuits__are_bounded(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CIRCUITS", 5)
    case.die(BAD, times=3, every=0.001)
    for number in range(20):
        case.die(TenantVersion("tenant-c", str(number)), every=0.001)

    assert len(case.breaker._circuits) == 5
    assert (case.breaker.open, case.gauge) == (0, 0)


VERSIONS = [TenantVersion("t", name) for name in "xyz"]
EVENTS = st.one_of(
    st.tuples(st.just("die"), st.sets(st.sampled_from(VERSIONS), min_size=1)),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 29.0, 31.0, 599.0, 700.0])),
    st.tuples(st.just("call"), st.tuples(st.sampled_from(VERSIONS), st.booleans())),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_whatever_happens__the_count_is_right_and_an_innocent_is_never_refused(events: list[tuple[str, object]]) -> None:
    case, alone = Case(), dict.fromkeys(VERSIONS, 0)
    for kind, what in events:
        if kind == "wait":
            assert isinstance(what, float)
            case.now += what
        elif kind == "die":
            assert isinstance(what, set)
            case.die(*what, every=0)
            if len(what) == 1:
                alone[next(iter(what))] += 1
        else:
            assert isinstance(what, tuple)
            version, survives = what
            try:
                with case.breaker.admit(version) as passage:
                    if survives:
                        passage.survived()
            except RefusalError:
                assert alone[version] >= 3
        circuits = case.breaker._circuits.values()
        assert case.breaker.open == sum(circuit.open_until is not None for circuit in circuits)
        assert all(circuit.trial is None for circuit in circuits)


def test_circuit_that_is_forgotten_while_it_is_tried__is_not_counted_down_twice(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CIRCUITS", 1)
    case.die(BAD, times=3, every=0)
    case.now += 31
    with case.breaker.admit(BAD) as trial:
        case.die(GOOD, times=3)
        trial.survived()
    assert (case.breaker.open, case.gauge, case.transitions("closed")) == (1, 1, 1)


def test_pause_that_ended_long_ago__is_no_longer_counted_even_where_no_worker_dies(case: Case) -> None:
    case.die(BAD, times=3, every=0)
    case.now += 30 + 601
    case.breaker.forget_old()
    assert (case.gauge, case.transitions("closed")) == (0, 1)
    assert not case.breaker.admit(BAD).alone
