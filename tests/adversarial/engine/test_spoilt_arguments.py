"""What a guest hands to its host may be no UTF-8, lie outside its memory or be longer than it: every string and list of every function."""

from __future__ import annotations

import pytest

from runnerd.capabilities.catalog import FUNCTIONS, HostFunction
from runnerd.capabilities.shapes import Text
from runnerd.engine.outcomes import Completed, LimitExceeded, LimitKind, TrapKind, Trapped
from tests.fakes.asking_guests import asking_guest, spoilt_arguments
from tests.fakes.engine_kit import EngineKit, post

ASKING = [function for function in FUNCTIONS if function.params]
EVERYTHING = frozenset(function.capability for function in FUNCTIONS)


@pytest.fixture(scope="module", params=["bridge", "ordinary"])
def kit(request: pytest.FixtureRequest) -> EngineKit:
    return EngineKit(bridge=request.param == "bridge")


def fails(function: HostFunction, _arguments: object) -> tuple[object, str | None]:
    """Answer as a host that has nothing."""
    if function.error is not None:
        return None, function.error.cases[0]
    return function.denied, None


@pytest.mark.parametrize("function", ASKING, ids=lambda function: function.qualified_name)
def test_every_string_and_list__spoilt__ends_the_guest_before_anybody_is_asked(kit: EngineKit, function: HostFunction) -> None:
    guest = kit.load_wasm(asking_guest(function))
    well = kit.run(guest, answer=fails, grants=EVERYTHING)
    # As they are the arguments arrive, or the rest would prove nothing.
    assert isinstance(well.outcome, Completed), well.outcome
    assert len(well.port.calls) == (0 if function.local else 1)

    arrived: list[object] = []
    for spoilt in spoilt_arguments(function):
        ran = kit.run(guest, post(spoilt.body), answer=fails, grants=EVERYTHING)
        outcome = ran.outcome
        broken = isinstance(outcome, Trapped) and outcome.kind in {TrapKind.ABI, TrapKind.OUT_OF_BOUNDS}
        # Too long for what carries it, before anybody looks where it lies.
        too_much = isinstance(outcome, LimitExceeded) and outcome.limit in {LimitKind.HOST_CALL_SIZE, LimitKind.MEMORY}
        if ran.port.calls or ran.lines or not (broken or too_much):
            arrived.append((spoilt.what, outcome))
    assert arrived == []


def test_spoilt_arguments__cover_every_function_that_takes_a_string() -> None:
    assert {function.number for function in FUNCTIONS if any(isinstance(shape, Text) for _, shape in function.params)} <= {
        function.number for function in ASKING if spoilt_arguments(function)
    }
    assert sum(len(spoilt_arguments(function)) for function in ASKING) > 150
