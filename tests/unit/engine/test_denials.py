"""Every function of the catalog, called without its capability: the worker answers its typed denial, asks nobody, and notes it once."""

from __future__ import annotations

import pytest

from runnerd.capabilities.catalog import FUNCTIONS, HostFunction
from runnerd.engine.outcomes import Completed
from tests.fakes.asking_guests import asking_guest
from tests.fakes.engine_kit import EngineKit

EVERYTHING = frozenset(function.capability for function in FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.qualified_name)
def test_denied__every_function__answers_without_a_frame(kit: EngineKit, function: HostFunction) -> None:
    ran = kit.run(kit.load_wasm(asking_guest(function)), grants=EVERYTHING - {function.capability})
    assert ran.port.calls == []
    assert ran.lines == []
    assert ran.call.denied == {function.capability}
    assert isinstance(ran.outcome, Completed), ran.outcome


def test_denied__again_and_again__is_told_once(kit: EngineKit) -> None:
    call, _ = kit.call(grants=frozenset())
    told: list[str] = []
    call.on_denied = told.append
    for capability in ("user.read", "http.fetch", "user.read"):
        call.deny(capability)
    assert told == ["user.read", "http.fetch"]
