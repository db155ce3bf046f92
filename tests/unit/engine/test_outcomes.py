"""Each way a guest can end, made by a guest that ends that way."""

from __future__ import annotations

import pytest
import wasmtime
from wasmtime import component

from runnerd.engine.component_values import GuestTypeError
from runnerd.engine.invocation import LoadedComponent
from runnerd.engine.outcomes import (
    Completed,
    Figures,
    GuestError,
    InternalError,
    LimitExceeded,
    LimitKind,
    TrapKind,
    Trapped,
    classify_instantiation,
    classify_trap,
    reason_of,
)
from tests.fakes import guests
from tests.fakes.engine_kit import ALWAYS, EngineKit, limits, post

FIGURES = Figures(
    fuel_used=5,
    fuel_allowed=10,
    memory_cap=65_536,
    memory_allowed=65_536,
    memory_touched=0,
    carried=100,
    table_elements_allowed=50,
)


@pytest.mark.parametrize(
    ("guest", "kind"),
    [
        ("unreachable", TrapKind.UNREACHABLE),
        ("stack_overflow", TrapKind.STACK_OVERFLOW),
        ("out_of_bounds", TrapKind.OUT_OF_BOUNDS),
        ("table_out_of_bounds", TrapKind.OUT_OF_BOUNDS),
        ("divide_by_zero", TrapKind.ARITHMETIC),
        ("integer_overflow", TrapKind.ARITHMETIC),
        ("bad_conversion", TrapKind.ARITHMETIC),
        ("empty_table_element", TrapKind.BAD_INDIRECT_CALL),
        ("wrong_indirect_type", TrapKind.BAD_INDIRECT_CALL),
        ("exit", TrapKind.EXIT),
        ("bad_body_pointer", TrapKind.ABI),
        ("unaligned_response_pointer", TrapKind.ABI),
        ("bad_discriminant", TrapKind.ABI),
        ("invalid_utf8", TrapKind.ABI),
        ("unknown_import", TrapKind.UNKNOWN_IMPORT),
        ("imported_function", TrapKind.UNKNOWN_IMPORT),
        ("huge_random", TrapKind.OTHER),
    ],
)
def test_trap__each_kind__is_named(kit: EngineKit, guest: str, kind: TrapKind) -> None:
    outcome = kit.run(guest).outcome

    assert isinstance(outcome, Trapped)
    assert outcome.kind is kind
    assert 0 < len(outcome.message) <= 600
    assert "0x" not in outcome.message.replace("0x…", "")


@pytest.mark.parametrize(
    ("guest", "limit"),
    [
        ("big_minimum_memory", LimitKind.MEMORY),
        ("memory_bomb", LimitKind.MEMORY),
        ("write_behind_memory", LimitKind.MEMORY),
        ("respond_3_mib", LimitKind.RESPONSE_SIZE),
        ("many_headers", LimitKind.HEADERS),
        ("many_pollables", LimitKind.HANDLES),
    ],
)
def test_limit__each_kind__is_named_with_figures(kit: EngineKit, guest: str, limit: LimitKind) -> None:
    outcome = kit.run(guest).outcome

    assert isinstance(outcome, LimitExceeded)
    assert outcome.limit is limit
    assert outcome.used >= outcome.allowed > 0


def test_fuel__used_up__is_a_limit(kit: EngineKit) -> None:
    ran = kit.run("spin_forever", within=limits(fuel=1_000_000))

    assert ran.outcome == LimitExceeded(limit=LimitKind.FUEL, used=1_000_000, allowed=1_000_000)
    assert ran.finished.fuel == 1_000_000


def test_fuel__used_up_in_start_function__is_a_limit(kit: EngineKit) -> None:
    outcome = kit.run("spin_at_start", within=limits(fuel=1_000_000)).outcome

    assert outcome == LimitExceeded(limit=LimitKind.FUEL, used=1_000_000, allowed=1_000_000)


@pytest.mark.parametrize("guest", ["spin_forever", "spin_at_start", "bulk_memory_loop", "sleep_in_poll", "log_and_spin"])
def test_wall_time__passed__is_a_limit(kit: EngineKit, guest: str) -> None:
    outcome = kit.run(guest, within=limits(wall_seconds=0.3)).outcome

    assert isinstance(outcome, LimitExceeded)
    assert outcome.limit is LimitKind.WALL_TIME
    assert outcome.used >= outcome.allowed == 300


def test_cpu_time__used_up__is_a_limit_before_the_wall_time(kit: EngineKit) -> None:
    outcome = kit.run("spin_forever", within=limits(cpu_seconds=0.2)).outcome

    assert isinstance(outcome, LimitExceeded)
    assert outcome.limit is LimitKind.CPU_TIME
    assert outcome.used >= outcome.allowed == 200


def test_sleeping__costs_no_cpu_time(kit: EngineKit) -> None:
    outcome = kit.run("sleep_in_poll", within=limits(wall_seconds=0.5, cpu_seconds=0.4)).outcome

    assert outcome.limit is LimitKind.WALL_TIME


@pytest.mark.parametrize("guest", ["spin_forever", "sleep_in_poll", "ask_for_ever"])
def test_cancel__running_guest__ends_it(kit: EngineKit, guest: str) -> None:
    ran = kit.run(guest, within=limits(wall_seconds=30.0, host_calls=10_000), answer=lambda _f, _a: (None, None), cancel_after=0.2)

    if guest == "ask_for_ever" and isinstance(ran.outcome, LimitExceeded):
        assert ran.outcome.limit is LimitKind.HOST_CALLS
    else:
        assert ran.outcome == InternalError(message="cancelled")


@pytest.mark.parametrize("guest", ["invalid_status", "no_content_with_body", "control_character_in_header"])
def test_answer__not_a_valid_response__is_a_guest_error(kit: EngineKit, guest: str) -> None:
    assert isinstance(kit.run(guest).outcome, GuestError)


def test_headers__forbidden_ones__are_dropped(kit: EngineKit) -> None:
    assert kit.run("forbidden_headers").outcome == Completed(status=200, headers=(("x-ok", "a=b"),), body=b"")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 65_536, 1_000_003])
def test_echo__body_of_any_size__comes_back(kit: EngineKit, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)

    assert kit.run("echo", post(body[:size])).outcome == Completed(status=200, headers=(), body=body[:size])


def test_response_pointer__outside_the_memory__is_a_trap(kit: EngineKit) -> None:
    # The engine's own reader says that a rule was broken; compiled copies between components fault.
    assert kit.run("bad_response_pointer").outcome.kind is (TrapKind.OUT_OF_BOUNDS if kit.bridge else TrapKind.ABI)


def test_context__asked_for__is_the_calls(kit: EngineKit) -> None:
    assert kit.run("get_context").outcome.body == b"tenant-1"


def test_every_guest__of_the_folder__is_in_a_test() -> None:
    folder = guests.ROOT / "tests"
    sources = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("test_*.py"))

    assert [name for name in guests.guest_names() if f'"{name}"' not in sources] == []


def test_missing_handler__component_without_it__is_refused(kit: EngineKit) -> None:
    compiled = component.Component(kit.engine, wasmtime.wat2wasm("(component)"))
    with pytest.raises(GuestTypeError):
        LoadedComponent(kit.engine, compiled, memories=1, bridged=False)


def test_resource__of_several_names__is_one_type(kit: EngineKit) -> None:
    assert kit.run("resource_with_two_names").outcome.body == b"hello"


def test_store__after_each_call__is_new(kit: EngineKit) -> None:
    # The first call leaves its memory grown to the cap; the second must start small again.
    first = kit.run("grow_memory").outcome
    second = kit.run("grow_memory").outcome

    assert first == second


@pytest.mark.parametrize("guest", ["many_pollables", "dropped_handle", "unreachable", "poll_too_many"])
def test_store__after_a_trap__is_closed_and_its_resources_are_forgotten(
    kit: EngineKit, guest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores: list[wasmtime.Store] = []

    class Watched(wasmtime.Store):
        def __init__(self, engine: wasmtime.Engine) -> None:
            super().__init__(engine)
            stores.append(self)

    monkeypatch.setattr(wasmtime, "Store", Watched)
    ran = kit.run(guest)

    assert isinstance(ran.outcome, Trapped | LimitExceeded)
    assert ran.call.resources == {}
    (store,) = stores
    with pytest.raises(ValueError, match="closed"):
        store.set_fuel(1)


def test_host_call__exception_of_the_host__is_ours_and_stays_in_its_call(kit: EngineKit) -> None:
    def explode(_function: object, _arguments: object) -> tuple[object, str | None]:
        raise ZeroDivisionError

    outcome = kit.run("get_setting", answer=explode).outcome

    assert outcome == InternalError(message="extrunner:host/config.get failed: ZeroDivisionError")
    assert kit.run("hello").outcome.body == b"hello"


def test_wrong_import_type__not_checked_at_publish__is_a_trap_of_that_call(kit: EngineKit) -> None:
    unchecked = component.Component(kit.engine, guests.component("storage_of_another_type"))
    loaded = LoadedComponent(kit.engine, unchecked, memories=1, bridged=False)
    outcome = kit.run(loaded, grants=ALWAYS | {"storage.kv"}).outcome

    assert isinstance(outcome, Trapped)
    assert outcome.kind is TrapKind.ABI


def test_function_names__that_spell_another_trap__change_nothing(kit: EngineKit) -> None:
    name = r"\0a\0aCaused by:\0a    wasm trap: all fuel consumed by WebAssembly\0a    linear memory of size 0xffffffff"
    text = f"""(core module $module (func $"{name}" (export "handler") (param i32) (result i32) unreachable))
      (core instance $guest (instantiate $module))"""
    outcome = kit.run(kit.load_wasm(guests.assemble(text))).outcome

    assert outcome == Trapped(kind=TrapKind.UNREACHABLE, message="the extension aborted (unreachable instruction)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wasm trap: null reference", TrapKind.BAD_INDIRECT_CALL),
        ("cannot enter component instance", TrapKind.ABI),
        ("something new", TrapKind.OTHER),
        ("", TrapKind.OTHER),
    ],
)
def test_classify__texts_that_no_guest_makes_here(text: str, expected: TrapKind) -> None:
    outcome = classify_trap(text, FIGURES)

    assert isinstance(outcome, Trapped)
    assert outcome.kind is expected


def test_classify__table_larger_than_allowed__is_a_limit() -> None:
    outcome = classify_instantiation("table minimum size of 60 elements exceeds table limits", FIGURES)

    assert outcome == LimitExceeded(limit=LimitKind.TABLES, used=51, allowed=50)


def test_reason__of_a_long_error__has_no_addresses_and_is_short() -> None:
    text = (
        "error while executing at wasm backtrace:\n    0:  0x2a31f - foo\n\nCaused by:\n    wasm trap: odd thing at 0xdeadbeef00 "
        + "x" * 2000
    )

    reason = reason_of(text)

    assert reason.startswith("wasm trap: odd thing at 0x… xxx")
    assert len(reason) <= 512
