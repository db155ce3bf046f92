"""Mutated components and mutated errors of the engine: whatever comes, a verdict comes out, the same on both call paths."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runnerd.engine.compilation import CompileRejectedError, compile_component
from runnerd.engine.outcomes import (
    Completed,
    Figures,
    InternalError,
    LimitExceeded,
    Outcome,
    TrapKind,
    Trapped,
    classify_instantiation,
    classify_trap,
)
from runnerd.engine.profile import EngineProfile
from tests.fakes import guests
from tests.fakes.engine_kit import MIB, EngineKit, limits, post

SEEDS = ("hello", "echo", "get_setting", "two_memories", "exports_run", "delete_record")
MUTANTS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def kits() -> tuple[EngineKit, EngineKit]:
    """The bridge and the ordinary path."""
    return EngineKit(bridge=True), EngineKit(bridge=False)


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """Draw a component with some bytes flipped, cut out, repeated or put elsewhere; its preamble stays."""
    wasm = bytearray(guests.component(draw(st.sampled_from(SEEDS))))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(8, len(wasm) - 1))
        length = draw(st.integers(1, 12))
        match draw(st.sampled_from(("flip", "set", "cut", "repeat", "move"))):
            case "flip":
                wasm[position] ^= 1 << draw(st.integers(0, 7))
            case "set":
                wasm[position] = draw(st.integers(0, 255))
            case "cut":
                del wasm[position : position + length]
            case "repeat":
                wasm[position:position] = wasm[position : position + length]
            case "move":
                piece = wasm[position : position + length]
                del wasm[position : position + length]
                place = draw(st.integers(8, len(wasm)))
                wasm[place:place] = piece
        if len(wasm) < 16:
            break
    return bytes(wasm)


def outcome_of(kit: EngineKit, wasm: bytes) -> Outcome | None:
    """Run a mutant; None where it is not accepted."""
    try:
        compiled = compile_component(wasm, EngineProfile(bridge=kit.bridge))
    except CompileRejectedError:
        return None
    within = limits(wall_seconds=2.0, fuel=2_000_000, memory_bytes=4 * MIB, host_calls=10)
    ran = kit.run(kit.load_compiled(compiled), post(b"x" * 50), within=within, answer=lambda _f, _a: (None, None))
    outcome: Outcome = ran.outcome
    return outcome


@MUTANTS
@given(wasm=mutants())
def test_mutant__is_refused_or_ends_in_an_outcome_of_its_own__on_both_paths_alike(kits: tuple[EngineKit, EngineKit], wasm: bytes) -> None:
    bridged, ordinary = (outcome_of(kit, wasm) for kit in kits)

    assert (bridged is None) == (ordinary is None)
    # "An error of ours" would be a guest's way to look innocent.
    assert not isinstance(bridged, InternalError)
    assert not isinstance(ordinary, InternalError)
    if isinstance(ordinary, Completed):
        assert bridged == ordinary or isinstance(bridged, LimitExceeded)


FIGURES = st.builds(
    Figures,
    fuel_used=st.integers(0, 2**40),
    fuel_allowed=st.integers(0, 2**40),
    memory_cap=st.integers(0, 2**30),
    memory_allowed=st.integers(0, 2**30),
    memory_touched=st.integers(0, 2**40),
    carried=st.just(2 * MIB),
    table_elements_allowed=st.just(50_000),
)
PIECES = (
    "wasm trap: ",
    "Caused by:\n",
    "    0: ",
    "error while executing at wasm backtrace:\n",
    "wasm `unreachable` instruction executed",
    "all fuel consumed by WebAssembly",
    "out of bounds memory access",
    " in linear memory of size 0x",
    "ffffffffffffffffffff",
    "memory minimum size of 99999999999999999999 pages exceeds memory limits",
    "table minimum size of 7 elements exceeds table limits",
    "resource limit exceeded: instance count too high at 101",
    "fuel allocated for hostcalls has been exhausted",
    "call stack exhausted",
    "\n",
)


@given(text=st.lists(st.sampled_from(PIECES) | st.text(max_size=30), max_size=12).map("".join), figures=FIGURES)
def test_any_text_of_the_engine__is_classified_with_sensible_figures(text: str, figures: Figures) -> None:
    for outcome in (classify_trap(text, figures), classify_instantiation(text, figures)):
        if isinstance(outcome, LimitExceeded):
            assert outcome.used >= outcome.allowed >= 0
        else:
            assert isinstance(outcome, Trapped)
            assert isinstance(outcome.kind, TrapKind)
            assert 0 < len(outcome.message) <= 600
