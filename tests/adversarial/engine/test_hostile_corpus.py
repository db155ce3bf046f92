"""The hostile corpus: one guest for each behaviour, and how it must end. The one table; it runs in a real worker, on each call path.

After each hostile call the same worker, never a replacement, answers an honest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from registry.domain.headers import MAX_HEADER_BYTES, MAX_HEADERS
from runnerd.capabilities.catalog import HostFunction
from runnerd.engine.compilation import CompileRejectedError, compile_component
from runnerd.engine.profile import EngineProfile
from runnerd.engine.resources import MAX_RESOURCES
from tests.fakes import guests
from tests.fakes.worker_driver import ALWAYS, MIB, Ended, WorkerDriver, status_of

PAGE = 64 * 1024
WALL_MS = 150


@dataclass(frozen=True, kw_only=True)
class Ends:
    """How a call ends: what `Done` says, and for a limit what was allowed of it."""

    kind: str
    detail: str = ""
    allowed: int = 0
    start: Mapping[str, Any] = field(default_factory=dict)
    """Fields of Start."""
    body: bytes | None = None
    number: int | None = None
    """What a guest that answers a number must have answered."""
    bridge: str | None = None
    """The detail on the bridge, where that differs."""

    def faults(self, ended: Ended, call_path: str) -> list[str]:
        """Say what differs."""
        detail = self.bridge if self.bridge is not None and call_path == "bridge" else self.detail
        found = f"{ended.kind} {ended.trap or ended.limit}".strip()
        faults = [] if found == f"{self.kind} {detail}".strip() else [f"{found} instead of {self.kind} {detail}"]
        if ended.kind == "limit" and not (ended.done.limit.allowed == self.allowed and ended.done.limit.used >= self.allowed):
            faults.append(f"used {ended.done.limit.used} of {ended.done.limit.allowed}, which is not {self.allowed}")
        if self.number is not None and int.from_bytes(ended.body or b"", "little") != self.number:
            faults.append(f"answered {ended.body!r}")
        return faults


def limit(detail: str, allowed: int, **rest: Any) -> Ends:
    return Ends(kind="limit", detail=detail, allowed=allowed, **rest)


def trap(detail: str, **rest: Any) -> Ends:
    return Ends(kind="trapped", detail=detail, **rest)


def completes(**rest: Any) -> Ends:
    return Ends(kind="completed", **rest)


RUNS_OUT_OF_TIME = limit("wall_time", WALL_MS, start={"wall_time_us": WALL_MS * 1000})
RUNS_OUT_OF_CPU = limit("cpu_time", 100, start={"cpu_time_us": 100_000})
RUNS_OUT_OF_FUEL = limit("fuel", 1_000_000, start={"fuel": 1_000_000})
IN_SMALL_MEMORY = {"memory_bytes": 4 * MIB}
WITH_BODY: Mapping[str, Any] = {"body": b"x" * 100}

CORPUS: tuple[tuple[str, Ends], ...] = (
    # Processor time.
    ("spin_forever", RUNS_OUT_OF_TIME),
    ("spin_forever", RUNS_OUT_OF_CPU),
    ("spin_forever", RUNS_OUT_OF_FUEL),
    ("fuel_burner", RUNS_OUT_OF_TIME),
    ("fuel_burner", RUNS_OUT_OF_FUEL),
    ("spin_at_start", RUNS_OUT_OF_TIME),
    ("spin_at_start", RUNS_OUT_OF_FUEL),
    ("bulk_memory_loop", RUNS_OUT_OF_TIME),
    ("realloc_spins", limit("wall_time", WALL_MS, start={"wall_time_us": WALL_MS * 1000}, body=b"x")),
    ("post_return_spins", RUNS_OUT_OF_TIME),
    ("stack_overflow", trap("stack_overflow")),
    # Waiting.
    ("sleep_in_poll", RUNS_OUT_OF_TIME),
    ("wait_for_ages", RUNS_OUT_OF_TIME),
    ("poll_nothing", trap("abi")),
    ("poll_too_many", trap("abi")),
    ("forged_handle", trap("abi")),
    ("dropped_handle", trap("abi")),
    ("many_pollables", limit("handles", MAX_RESOURCES)),
    ("ask_for_ever", limit("host_calls", 7, start={"host_calls": 7})),
    ("ask_for_ever", limit("host_calls", 7, start={"host_calls": 7, "capabilities": []})),
    # Memory and tables.
    ("memory_bomb", limit("memory", 4 * MIB, start=IN_SMALL_MEMORY)),
    ("memory_bomb", limit("memory", 64 * MIB)),
    ("grow_at_start", limit("memory", 4 * MIB, start=IN_SMALL_MEMORY)),
    ("bomb_in_second_memory", limit("memory", 8 * MIB, start={"memory_bytes": 8 * MIB})),
    ("write_behind_memory", limit("memory", 4 * MIB, start=IN_SMALL_MEMORY)),
    ("big_minimum_memory", limit("memory", 64 * MIB)),
    ("grow_memory", completes(start=IN_SMALL_MEMORY, number=4 * MIB // PAGE)),
    ("two_memories", completes(start=IN_SMALL_MEMORY, number=2 * MIB // PAGE)),
    ("three_memories", completes(start=IN_SMALL_MEMORY, number=63)),
    ("four_memories", completes(start=IN_SMALL_MEMORY, number=4 * MIB // PAGE)),
    ("data_behind_memory", trap("out_of_bounds")),
    ("table_growth", completes()),
    ("sixteen_tables", completes()),
    ("table_behind_end", trap("out_of_bounds")),
    # Output.
    ("respond_3_mib", limit("response_size", 2 * MIB)),
    ("many_headers", limit("headers", MAX_HEADERS)),
    ("long_header", limit("headers", MAX_HEADER_BYTES)),
    ("log_flood", completes()),
    ("stdout_flood", RUNS_OUT_OF_TIME),
    ("huge_random", trap("other")),
    ("invalid_status", Ends(kind="guest_error")),
    ("no_content_with_body", Ends(kind="guest_error")),
    ("control_character_in_header", Ends(kind="guest_error")),
    # The component model's rules.
    ("invalid_utf8", trap("abi")),
    ("invalid_utf8_value", trap("abi")),
    ("giant_header_list", trap("abi")),
    ("bad_body_pointer", trap("abi")),
    ("bad_response_pointer", trap("abi", bridge="out_of_bounds")),
    ("unaligned_response_pointer", trap("abi")),
    ("bad_discriminant", trap("abi")),
    ("realloc_out_of_bounds", trap("abi", bridge="out_of_bounds", **WITH_BODY)),
    ("realloc_at_the_end", trap("abi", bridge="out_of_bounds", **WITH_BODY)),
    ("realloc_unaligned", trap("abi", **WITH_BODY)),
    ("realloc_null", trap("abi", **WITH_BODY)),
    ("realloc_traps", trap("unreachable", **WITH_BODY)),
    ("realloc_calls_host", trap("abi", **WITH_BODY)),
    ("post_return_traps", trap("unreachable")),
    # Traps of its own.
    ("unreachable", trap("unreachable")),
    ("trap_at_start", trap("unreachable")),
    ("divide_by_zero", trap("arithmetic")),
    ("out_of_bounds", trap("out_of_bounds")),
    ("empty_table_element", trap("bad_indirect_call")),
    ("exit", trap("exit")),
    # Imports and exports.
    ("unknown_import", trap("unknown_import")),
    ("imported_function", trap("unknown_import")),
    ("exports_run", completes()),
)
"""Guest, how it ends."""


def answer_nothing(function: HostFunction, _arguments: tuple[object, ...]) -> None:
    assert function.qualified_name == "extrunner:host/config.get"


async def test_each_hostile_guest__ends_as_it_should_and_the_worker_goes_on(worker: WorkerDriver, call_path: str) -> None:
    faults: list[str] = []
    for name, ends in CORPUS:
        # Each keeps a descriptor of the worker, which has few: as the daemon does, drop what is not needed.
        component = await worker.load_compiled(guests.compiled(name, bridge=worker.bridge))
        start: dict[str, Any] = {"capabilities": [*ALWAYS, "storage.kv"], **ends.start}
        ended = await worker.call(component, body=ends.body, answer=answer_nothing, **start)
        await worker.drop(component)
        faults += [f"{name}: {fault}" for fault in ends.faults(ended, call_path)]
        assert (await worker.call("hello")).body == b"hello", name
    assert faults == []
    assert not worker.process.has_exited


async def test_overlapping_headers__of_200_mebibytes__end_with_bounded_memory(worker: WorkerDriver, call_path: str) -> None:
    ended = await worker.call("overlapping_headers", memory_bytes=64 * MIB)

    # The ordinary path carries 2 MiB; on the bridge the copies fill its memory.
    assert (ended.kind, ended.limit) == ("limit", "memory" if call_path == "bridge" else "response_size")
    assert ended.done.limit.used >= ended.done.limit.allowed > 0
    assert (await worker.call("hello")).body == b"hello"
    assert ended.done.peak_memory_bytes <= 64 * MIB


TRAPPING = ("unreachable", "out_of_bounds", "exit", "memory_bomb", "many_pollables", "invalid_utf8", "trap_at_start", "spin_forever")


async def test_a_thousand_trapping_calls__leave_nothing_in_the_worker(worker: WorkerDriver) -> None:
    """After a trap the store is gone, with its instance, its memory and the host's resources of that call."""

    async def trap_all(times: int) -> None:
        for _ in range(times):
            for name in TRAPPING:
                ended = await worker.call(name, memory_bytes=2 * MIB, fuel=200_000 if name == "spin_forever" else 10**9)
                assert ended.kind in {"trapped", "limit"}

    def resident_kib() -> int:
        return int(status_of(worker.process.pid).split("VmRSS:")[1].split()[0])

    def descriptors() -> int:
        return len(list(Path(f"/proc/{worker.process.pid}/fd").iterdir()))

    await trap_all(15)
    before, open_before = resident_kib(), descriptors()
    await trap_all(1000 // len(TRAPPING))

    assert resident_kib() - before < 4 * 1024
    assert descriptors() == open_before
    assert (await worker.call("hello")).body == b"hello"


# --- what never runs -------------------------------------------------------------------------------------------------------------------

ABORTS = """(core module $module (func (export "handler") (param i32) (result i32) unreachable))
  (core instance $guest (instantiate $module))"""


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def multiplied(levels: int) -> bytes:
    """Return a component in which each level instantiates the one below twice: 2^levels memories from a few hundred bytes."""
    inner = "(component $c0 (core module $m (memory 1)) (core instance (instantiate $m)))"
    for level in range(1, levels + 1):
        inner = f"(component $c{level} {inner} (instance (instantiate $c{level - 1})) (instance (instantiate $c{level - 1})))"
    return guests.assemble(f"{inner} (instance (instantiate $c{levels})) {ABORTS}")


ANOTHER_WORLD = """(component
  (core module $m (memory 1) (func (export "run") (result i32) (i32.const 0))) (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $cli (export "run" (func $run))) (export "wasi:cli/run@0.2.3" (instance $cli)))"""
HANDLER_OF_ANOTHER_TYPE = """(component
  (core module $m (memory 1) (func (export "handler") (param i32))) (core instance $i (instantiate $m))
  (alias core export $i "handler" (core func $h)) (func $handler (param "request" u32) (canon lift (core func $h)))
  (export "handler" (func $handler)))"""
HANDLER_IS_NO_FUNCTION = """(component (core module $m (memory 1) (func (export "f"))) (core instance (instantiate $m))
  (component $c) (instance $i (instantiate $c)) (export "handler" (instance $i)))"""
USES_ASYNC = """(component (core module $m (memory 1) (func (export "f"))) (core instance $i (instantiate $m))
  (alias core export $i "f" (core func $f)) (func $handler async (canon lift (core func $f) async)) (export "handler" (func $handler)))"""


def data_segment(size: int) -> str:
    return f'(core module $module (memory {size // PAGE + 1}) (data (i32.const 0) "{"x" * size}")' + ABORTS.removeprefix(
        "(core module $module"
    )


REJECTED: tuple[tuple[str, bytes, str], ...] = (
    ("nothing", b"", "not a WebAssembly component"),
    ("a program", b"\x7fELF" + bytes(100), "not a WebAssembly component"),
    ("core module", wat('(module (memory 1) (func (export "handler")))'), "core module"),
    ("empty component", wat("(component)"), "does not export the function handler"),
    ("component of another world", wat(ANOTHER_WORLD), "does not export the function handler"),
    ("handler of another type", wat(HANDLER_OF_ANOTHER_TYPE), "not the function of the world"),
    ("handler that is no function", wat(HANDLER_IS_NO_FUNCTION), "does not export the function handler"),
    ("component async", wat(USES_ASYNC), "does not compile"),
    ("import of another type", guests.component("storage_of_another_type"), "imported with another type"),
    ("imported module", guests.assemble(f'(import "foreign" (core module $foreign)) {ABORTS}'), "imported as a module|no host provides"),
    (
        "instance of a foreign module",
        guests.assemble(f'(import "f" (core module $f)) (core instance (instantiate $f)) {ABORTS}'),
        "contain",
    ),
    ("five memories", guests.component("five_memories"), "5 linear memories"),
    ("seventeen tables", guests.component("many_tables"), "17 tables"),
    ("table of 60,000 elements", guests.component("big_minimum_table"), "does not compile"),
    ("memory above the ceiling", guests.assemble(ABORTS.replace("(func (export", "(memory 16385) (func (export")), "does not compile"),
    ("itself twice, five levels deep", multiplied(5), "33 linear memories"),
    ("itself twice, nine levels deep", multiplied(9), "nested too deeply"),
    ("cut in the middle", guests.component("hello")[:-3], "ends"),
)
"""What a publisher may send, and what the author is told."""


@pytest.mark.parametrize(("wasm", "said"), [(wasm, said) for _, wasm, said in REJECTED], ids=[name for name, _, _ in REJECTED])
def test_what_is_no_component_of_the_world__does_not_compile(wasm: bytes, said: str, call_path: str) -> None:
    with pytest.raises(CompileRejectedError, match=said):
        compile_component(wasm, EngineProfile(bridge=call_path == "bridge"))


@pytest.mark.parametrize(("memory_bytes", "expected"), [(64 * MIB, "trapped"), (4 * MIB, "limit")])
async def test_huge_data_segment__is_memory_like_any_other(worker: WorkerDriver, memory_bytes: int, expected: str) -> None:
    compiled = compile_component(guests.assemble(data_segment(8 * MIB)), EngineProfile(bridge=worker.bridge))
    ended = await worker.call(await worker.load_compiled(compiled), memory_bytes=memory_bytes)

    assert ended.kind == expected
    assert ended.limit in {"memory", ""}
    assert (await worker.call("hello")).body == b"hello"


def test_every_hostile_guest__is_told_apart_by_name() -> None:
    names = [name for name, _ in CORPUS]

    assert set(names) <= set(guests.guest_names())
    assert len(names) == len(
        {(name, ends.kind, ends.detail, ends.allowed, tuple(sorted(map(str, ends.start.items())))) for name, ends in CORPUS}
    )
