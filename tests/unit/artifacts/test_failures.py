from __future__ import annotations

import time

import pytest

from registry.domain.digests import content_hash
from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts import failures
from runnerd.artifacts.failures import FORGET_AFTER_SECONDS, RecentFailures

A, B = content_hash(b"a"), content_hash(b"b")


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(failures, "time", clock)
    assert time.monotonic() != clock.now
    return clock


@pytest.mark.parametrize("reason", sorted(FORGET_AFTER_SECONDS))
def test_a_failure_is_told_again_until_its_time_is_over(clock: Clock, reason: Reason) -> None:
    remembered = RecentFailures()
    remembered.remember(A, RefusalError(reason, "Change it.", metadata={"place": "x"}))
    clock.now += FORGET_AFTER_SECONDS[reason] - 0.001
    with pytest.raises(RefusalError) as caught:
        remembered.check(A)
    assert (caught.value.reason, caught.value.public_detail, caught.value.metadata) == (reason, "Change it.", {"place": "x"})
    remembered.check(B)
    clock.now += 0.001
    remembered.check(A)


@pytest.mark.parametrize("reason", sorted(set(Reason) - set(FORGET_AFTER_SECONDS)))
def test_what_may_be_over_the_next_moment_is_not_remembered(clock: Clock, reason: Reason) -> None:
    remembered = RecentFailures()
    remembered.remember(A, RefusalError(reason, "Try again."))
    remembered.check(A)
    assert not remembered._failures


def test_memory_is_bounded(clock: Clock) -> None:
    remembered = RecentFailures()
    for number in range(1_100):
        remembered.remember(content_hash(str(number).encode()), RefusalError(Reason.COMPILE_REJECTED, "No."))
    assert len(remembered._failures) == 1_024
    remembered.check(content_hash(b"0"))
    with pytest.raises(RefusalError):
        remembered.check(content_hash(b"1099"))


def test_what_makes_the_compiler_fail_again_and_again__is_tried_ever_more_rarely(clock: Clock) -> None:
    remembered = RecentFailures()
    waits = []
    for _ in range(9):
        remembered.remember(A, RefusalError(Reason.INTERNAL, "The component could not be compiled."))
        began = clock.now
        while _is_remembered(remembered):
            clock.now += 1.0
        waits.append(clock.now - began)
    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, failures.LONGEST_SECONDS, failures.LONGEST_SECONDS, failures.LONGEST_SECONDS]


def test_a_failure_long_after_another__is_forgotten_as_fast_as_the_first(clock: Clock) -> None:
    remembered = RecentFailures()
    for _ in range(2):
        remembered.remember(A, RefusalError(Reason.INTERNAL, "No."))
        clock.now += 5.0
        remembered.check(A)
        clock.now += 3_600.0


def _is_remembered(remembered: RecentFailures) -> bool:
    try:
        remembered.check(A)
    except RefusalError:
        return True
    return False
