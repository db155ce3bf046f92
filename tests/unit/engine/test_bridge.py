from __future__ import annotations

import resource
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.headers import MAX_HEADERS
from runnerd.engine import bindings as b
from runnerd.engine import bridge, calls
from runnerd.engine.component_values import GuestTypeError
from runnerd.engine.outcomes import LimitExceeded, LimitKind, TrapKind, Trapped
from tests.fakes import guests
from tests.fakes.engine_kit import ALWAYS, MIB, EngineKit, limits, post

BASE = 2_048


@pytest.fixture(scope="module")
def own_kit() -> EngineKit:
    return EngineKit()


def pair(head: bytes, body: bytes = b"") -> Any:
    """Make what `run` returns."""
    result = b.Value()
    address = b.new_tuple(result.of.tuple, 2)
    result.kind = b.KIND_TUPLE
    for index, text in enumerate((head, body)):
        value = b.Value.from_address(address + index * b.VALUE_BYTES)
        b.set_name(value.of.string, text)
        value.kind = b.KIND_STRING
    return result


def answer_head(
    *, pages: int = 3, digits: int = 0, status: int = 200, headers: tuple[int, int] = (0, 0), body: tuple[int, int] | None = None
) -> bytes:
    present, (address, length) = (0, (0, 0)) if body is None else (1, body)
    return struct.pack("<iI H2x II B3x II", pages, digits, status, *headers, present, address, length).hex().encode()


def read(result: Any) -> Any:
    try:
        return bridge.read_answer(result, BASE)
    finally:
        b.delete_value(result)


def test_answer__without_body_and_with__is_read() -> None:
    answer, memory = read(pair(answer_head(status=204)))
    assert (answer.status, answer.headers, answer.body, memory) == (204, [], None, 3 * 65_536)

    answer, memory = read(pair(answer_head(pages=-1, digits=1, body=(5_000, 2)), b"00ff"))
    assert (answer.body, memory) == (b"\x00\xff", None)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"", b""),
        (b"0", b""),
        (b"zz" * 32, b""),
        (answer_head()[:-2], b""),
        (answer_head(headers=(BASE, MAX_HEADERS + 1)), b""),
        (answer_head(headers=(BASE - 16, 1)), b""),
        (answer_head(headers=(BASE + 16, 2)), b""),
        (answer_head(headers=(0xFFFFFFF0, 1)), b""),
        (answer_head(body=(5_000, 3)), b"ab"),
        (answer_head(digits=1, body=(5_000, 1)), b"xy"),
        (answer_head(digits=1, body=(5_000, 1)), b"abc"),
    ],
)
def test_answer__that_is_none__is_the_guests_type_error(head: bytes, body: bytes) -> None:
    with pytest.raises(GuestTypeError):
        read(pair(head, body))


def test_answer__of_another_kind__is_the_guests_type_error() -> None:
    for value in (b.Value(), pair(b"")):
        value.of.tuple.size = 1 if value.kind == b.KIND_TUPLE else 0
        with pytest.raises(GuestTypeError):
            bridge.read_answer(value, BASE)
        value.of.tuple.size = 2
        b.delete_value(value)


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_answer__of_any_image__is_read_or_refused(image: bytes, body: bytes) -> None:
    try:
        read(pair(image.hex().encode(), body))
    except GuestTypeError:
        return


@pytest.mark.parametrize("body", [b"x", "ä".encode(), bytes(range(256)) * 40])
@pytest.mark.parametrize("allowed", [0, 10, 10_239])
def test_response__larger_than_allowed__says_how_large(own_kit: EngineKit, body: bytes, allowed: int) -> None:
    outcome = own_kit.run("echo", post(body), within=limits(response_bytes=allowed)).outcome

    if len(body) > allowed:
        assert outcome == LimitExceeded(limit=LimitKind.RESPONSE_SIZE, used=len(body), allowed=allowed)
    else:
        assert outcome.body == body


def test_headers__too_many__say_how_many(own_kit: EngineKit) -> None:
    outcome = own_kit.run("many_headers").outcome

    assert isinstance(outcome, LimitExceeded)
    assert (outcome.limit, outcome.allowed) == (LimitKind.HEADERS, MAX_HEADERS)
    assert outcome.used > MAX_HEADERS


def test_bodies__at_the_ceiling__cross_both_ways(own_kit: EngineKit) -> None:
    body = bytes(range(256)) * (32 * MIB // 256)
    outcome = own_kit.run("echo", post(body), within=limits(memory_bytes=160 * MIB, response_bytes=32 * MIB, wall_seconds=60)).outcome

    assert outcome.body == body


@pytest.mark.parametrize("size", [3 * MIB, MIB + MIB // 2])
def test_body__larger_than_the_memory_granted__is_the_memory_limit(own_kit: EngineKit, size: int) -> None:
    # The larger one does not fit on its way in, the smaller one not on its way out.
    outcome = own_kit.run("echo", post(b"\xff" * size), within=limits(memory_bytes=4 * MIB, response_bytes=8 * MIB)).outcome

    assert isinstance(outcome, LimitExceeded)
    assert (outcome.limit, outcome.allowed) == (LimitKind.MEMORY, 4 * MIB)
    assert outcome.used >= outcome.allowed


def test_response__of_a_gigabyte__fills_the_bridges_memory_to_its_own_maximum(own_kit: EngineKit) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = own_kit.run("respond_hugely", within=limits(memory_bytes=1024 * MIB, response_bytes=32 * MIB, cpu_seconds=30)).outcome

    assert isinstance(outcome, LimitExceeded)
    assert outcome.limit is LimitKind.MEMORY
    # Nothing was copied: the whole list did not fit, and of the guest's memory nothing was ever touched.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_memory__of_the_bridge__is_not_the_authors(own_kit: EngineKit) -> None:
    ran = own_kit.run("echo", post(b"\xff" * MIB), within=limits(memory_bytes=8 * MIB))

    # Two pages of its own and the body; the bridge held the digits besides.
    assert ran.finished.peak_memory_bytes is not None
    assert MIB < ran.finished.peak_memory_bytes <= MIB + 4 * 65_536


# --- host calls ------------------------------------------------------------------------------------------------------------------------


def asked(own_kit: EngineKit, frame: bytes, *, grants: frozenset[str] = ALWAYS | {"storage.kv"}) -> calls.Call:
    """Hand the host a frame as the bridge would; return the call."""
    call, _ = own_kit.call(grants=grants, answer=lambda _f, _a: (None, "internal"))
    arguments, results = b.new_values(1), b.new_values(1)
    b.set_name(arguments[0].of.string, frame)
    arguments[0].kind = b.KIND_STRING
    calls.set_current(call)
    try:
        bridge.host_call(None, arguments, 1, results, 1)
    finally:
        calls.set_current(None)
        b.delete_values(arguments)
        b.delete_values(results)
    return call


@pytest.mark.parametrize("number", [0, 7, 999, 2**64 - 1])
def test_host_call__of_a_function_that_the_bridge_does_not_carry__is_refused(own_kit: EngineKit, number: int) -> None:
    with pytest.raises(calls.StopCallError):
        asked(own_kit, number.to_bytes(8, "little").hex().encode())


@pytest.mark.parametrize("frame", [b"", b"abc", b"zz", (5).to_bytes(16, "big").hex().encode()])
def test_host_call__frame_that_is_none__reaches_nobody(own_kit: EngineKit, frame: bytes) -> None:
    with pytest.raises(calls.StopCallError):
        asked(own_kit, frame)


@given(st.sampled_from([4, 5, 6, 8, 12, 31, 32, 34, 35, 36]), st.binary(max_size=240))
def test_host_call__of_any_image__reaches_the_host_whole_or_ends_the_call(number: int, image: bytes) -> None:
    kit = _fuzzed()
    frame = (image + number.to_bytes(8, "little")).hex().encode()
    try:
        asked(kit, frame, grants=frozenset({"storage.kv", "http.fetch", "ui.proxy", "events.emit"}))
    except calls.StopCallError:
        return


_KIT: list[EngineKit] = []


def _fuzzed() -> EngineKit:
    if not _KIT:
        _KIT.append(EngineKit())
    return _KIT[0]


def test_host_call__without_the_capability__is_denied_unread(own_kit: EngineKit) -> None:
    ran = own_kit.run("put_bytes", post((100).to_bytes(4, "little")))

    assert ran.outcome.status == 503  # 500 + case 3, "denied"
    assert ran.call.denied == {"storage.kv"}
    assert ran.port.calls == []


@pytest.mark.parametrize("granted", [True, False])
def test_host_call__of_sixty_mebibytes__is_refused_typed_and_never_becomes_the_hosts_memory(own_kit: EngineKit, granted: bool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grants = ALWAYS | {"storage.kv"} if granted else ALWAYS
    ran = own_kit.run("put_bytes", post((60 * MIB).to_bytes(4, "little")), within=limits(memory_bytes=256 * MIB), grants=grants)

    assert ran.outcome.status == (502 if granted else 503)  # 500 + case 2, "invalid"; 3, "denied"
    assert ran.port.calls == []
    # The guest's own memory and the bridge's copy of it; digits of it would be four times as much again.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_host_call__more_than_allowed__ends_the_call(own_kit: EngineKit) -> None:
    outcome = own_kit.run("put_bytes", post((1).to_bytes(4, "little")), within=limits(host_calls=0), grants=ALWAYS | {"storage.kv"}).outcome

    assert outcome == LimitExceeded(limit=LimitKind.HOST_CALLS, used=1, allowed=0)


def test_guest_realloc__that_grows_in_steps__keeps_what_it_holds(own_kit: EngineKit) -> None:
    """A guest with UTF-16 strings makes the copies between components allocate, grow and shrink."""
    text = """
      (core module $module
        (memory (export "memory") 2)
        (global $top (mut i32) (i32.const 4096))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32)
          (local $start i32)
          (local.set $start (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
          (global.set $top (i32.add (local.get $start) (local.get 3)))
          (memory.copy (local.get $start) (local.get 0)
            (select (local.get 1) (local.get 3) (i32.lt_u (local.get 1) (local.get 3))))
          (local.get $start))
        ;; One header, "x-a": three characters beyond ASCII; the body is the address of the headers' list.
        (func (export "handler") (param i32) (result i32) (i32.const 16))
        (data (i32.const 16) "\\c8\\00\\00\\00\\80\\00\\00\\00\\01\\00\\00\\00\\00\\00\\00\\00")
        (data (i32.const 128) "\\00\\01\\00\\00\\03\\00\\00\\00\\20\\01\\00\\00\\03\\00\\00\\00")
        (data (i32.const 256) "x\\00-\\00a\\00")
        (data (i32.const 288) "\\e4\\00\\92\\21\\f6\\00"))
      (core instance $guest (instantiate $module))
      (alias core export $guest "handler" (core func $handler-core))
      (alias core export $guest "memory" (core memory $own))
      (alias core export $guest "realloc" (core func $own-realloc))
      (func $handler (param "request" $execute-request) (result $execute-response)
        (canon lift (core func $handler-core) (memory $own) (realloc $own-realloc) string-encoding=utf16))
      (export "handler" (func $handler))"""
    outcome = own_kit.run(own_kit.load_wasm(guests.assemble(text, lifted=False))).outcome

    assert outcome.headers == (("x-a", "ä→ö"),)


def test_trap_in_the_guest__leaves_no_answer_behind(own_kit: EngineKit) -> None:
    outcome = own_kit.run("unreachable", post(b"secret")).outcome

    assert outcome == Trapped(kind=TrapKind.UNREACHABLE, message="the extension aborted (unreachable instruction)")
