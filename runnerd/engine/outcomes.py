"""How a call ended: the outcomes, and the one place where an engine's error becomes one of them.

A failed call of a component gives a text that ends in "wasm trap: …" (RUNTIME §4.12); there is a test per kind. What the host itself
decided (deadline, exit, host-call limit) never passes through a text: the invocation keeps it as a `Stop`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class TrapKind(StrEnum):
    """Lower-case names of extrunner.runner.v1.TrapKind."""

    UNREACHABLE = "unreachable"
    STACK_OVERFLOW = "stack_overflow"
    OUT_OF_BOUNDS = "out_of_bounds"
    ARITHMETIC = "arithmetic"
    BAD_INDIRECT_CALL = "bad_indirect_call"
    EXIT = "exit"
    ABI = "abi"
    UNKNOWN_IMPORT = "unknown_import"
    INSTANTIATION = "instantiation"
    OTHER = "other"


class LimitKind(StrEnum):
    """Lower-case names of extrunner.runner.v1.LimitKind."""

    WALL_TIME = "wall_time"
    CPU_TIME = "cpu_time"
    FUEL = "fuel"
    MEMORY = "memory"
    RESPONSE_SIZE = "response_size"
    HOST_CALLS = "host_calls"
    HEADERS = "headers"
    TABLES = "tables"
    HOST_CALL_SIZE = "host_call_size"
    HANDLES = "handles"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The guest answered with a valid response."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trapped:
    """The guest trapped."""

    kind: TrapKind
    message: str
    """For the extension's author; no internals of the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitExceeded:
    """A limit ended the call. Both figures in the limit's unit: milliseconds, fuel, bytes, calls, headers, elements, handles."""

    limit: LimitKind
    used: int
    allowed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestError:
    """The guest answered, but not with a valid response."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalError:
    """The worker could not run the call; not the guest's doing."""

    message: str


Outcome = Completed | Trapped | LimitExceeded | GuestError | InternalError
Stop = Trapped | LimitExceeded | InternalError
"""An end that the host decided while the guest ran."""

MAX_MESSAGE_CHARACTERS = 512

# Needle in the engine's text → kind and what the author reads. The first that matches decides.
_TRAPS: tuple[tuple[str, TrapKind, str], ...] = (
    ("wasm `unreachable` instruction executed", TrapKind.UNREACHABLE, "the extension aborted (unreachable instruction)"),
    ("call stack exhausted", TrapKind.STACK_OVERFLOW, "the extension used up its stack of 1 MiB"),
    ("out of bounds memory access", TrapKind.OUT_OF_BOUNDS, "the extension accessed memory out of bounds"),
    ("undefined element: out of bounds table access", TrapKind.OUT_OF_BOUNDS, "the extension accessed a table out of bounds"),
    ("out of bounds table access", TrapKind.OUT_OF_BOUNDS, "the extension accessed a table out of bounds"),
    ("integer divide by zero", TrapKind.ARITHMETIC, "the extension divided an integer by zero"),
    ("integer overflow", TrapKind.ARITHMETIC, "an integer operation of the extension overflowed"),
    ("invalid conversion to integer", TrapKind.ARITHMETIC, "the extension converted a float that no integer can hold"),
    ("indirect call type mismatch", TrapKind.BAD_INDIRECT_CALL, "the extension called a function of another type"),
    ("uninitialized element", TrapKind.BAD_INDIRECT_CALL, "the extension called an empty table element"),
    ("null reference", TrapKind.BAD_INDIRECT_CALL, "the extension used a null reference"),
)
# What the canonical ABI refuses about what a guest hands over. wasmtime words these in several places; the tests hold one guest for each.
_ABI = re.compile(
    r"pointer not aligned|unaligned pointer|out[- ]of[- ]bounds|not in bounds|invalid utf|incomplete utf|utf-?16|discriminant"
    r"|realloc return|cannot (enter|leave) component|unknown handle|handle index|borrow|invalid (char|bool)",
    re.IGNORECASE,
)
_GUEST_RUNS = "wasm backtrace"
_HOSTCALL_FUEL = "fuel allocated for hostcalls has been exhausted"
_TOO_MUCH_MEMORY = re.compile(
    r"memory minimum size of \d+ (pages|bytes) exceeds memory limits|minimum size .{0,40}exceeds.{0,20}memory limit"
)
_TOO_MUCH_TABLE = re.compile(r"table minimum size of \d+ elements exceeds table limits|tables? .{0,40}(limit|exceeds)|table count too high")
_BRIDGE_IS_FULL = "memory fault at wasm address 0xfffffff0 "
"""Of `fail` in bridge.wat. A guest that reads there by itself names its own end so, and gains nothing."""
_LINEAR_MEMORY_SIZE = re.compile(r"in linear memory of size 0x([0-9a-f]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the call had used when it failed, for the outcomes that name figures."""

    fuel_used: int
    fuel_allowed: int
    memory_cap: int
    """Of one linear memory."""
    memory_allowed: int
    memory_touched: int
    """An estimate (`limits.TouchedMemory`)."""
    carried: int
    """Bytes that the call path carries in one value."""
    table_elements_allowed: int


def classify_instantiation(text: str, figures: Figures) -> Outcome:
    """Name the outcome of a component that did not instantiate."""
    whole, text = text, _cause_of(text)
    if "all fuel consumed" in text:
        return _out_of_fuel(figures)
    if _TOO_MUCH_MEMORY.search(text):
        return LimitExceeded(limit=LimitKind.MEMORY, used=figures.memory_allowed + 1, allowed=figures.memory_allowed)
    if _TOO_MUCH_TABLE.search(text):
        allowed = figures.table_elements_allowed
        return LimitExceeded(limit=LimitKind.TABLES, used=allowed + 1, allowed=allowed)
    if "wasm trap:" in text:
        return classify_trap(whole, figures)
    return Trapped(kind=TrapKind.INSTANTIATION, message="the component could not be instantiated: " + reason_of(text))


def classify_trap(text: str, figures: Figures) -> Outcome:
    """Name the outcome of a call that the engine ended."""
    whole, text = text, _cause_of(text)
    if _HOSTCALL_FUEL in text:
        # The ordinary path's wall stands before the response and before the arguments of a host call, in which the guest still runs (N4).
        limit = LimitKind.HOST_CALL_SIZE if _GUEST_RUNS in whole else LimitKind.RESPONSE_SIZE
        return LimitExceeded(limit=limit, used=figures.carried + 1, allowed=figures.carried)
    if "all fuel consumed by WebAssembly" in text:
        return _out_of_fuel(figures)
    if _ran_out_of_memory(text, figures):
        return LimitExceeded(limit=LimitKind.MEMORY, used=figures.memory_allowed, allowed=figures.memory_allowed)
    for needle, kind, message in _TRAPS:
        if needle in text:
            return Trapped(kind=kind, message=message)
    reason = reason_of(text)
    if _ABI.search(reason):
        return Trapped(kind=TrapKind.ABI, message="the extension broke the component model's rules: " + reason)
    return Trapped(kind=TrapKind.OTHER, message="the extension was ended by the engine: " + reason)


def _out_of_fuel(figures: Figures) -> LimitExceeded:
    return LimitExceeded(limit=LimitKind.FUEL, used=max(figures.fuel_used, figures.fuel_allowed), allowed=figures.fuel_allowed)


def _ran_out_of_memory(text: str, figures: Figures) -> bool:
    """Tell whether a trap follows from a refused growth of memory, as far as the C API lets one see it.

    A refused `memory.grow` is silent there. Evident is a fault behind a memory that stands at its cap, and an abort of a guest that has
    touched nearly all that one of its memories may have: allocators abort when growth fails.
    """
    if _BRIDGE_IS_FULL in text:
        return True
    fault = _LINEAR_MEMORY_SIZE.search(text)
    if fault is not None:
        return int(fault.group(1), 16) >= figures.memory_cap
    nearly_all = figures.memory_cap - figures.memory_cap // 8
    return "`unreachable`" in text and figures.memory_touched >= nearly_all


def _cause_of(text: str) -> str:
    """Return what follows the last "Caused by:".

    SECURITY: before it comes a backtrace with the guest's own function names, which may spell any trap and any "Caused by:". What the
    engine itself says comes last.
    """
    return text.rpartition("Caused by:\n")[2]


def reason_of(text: str) -> str:
    """Return the innermost cause of an engine's error, in one line without addresses."""
    lines = [line.strip() for line in _cause_of(text).splitlines() if line.strip()]
    chosen = re.sub(r"^\d+:\s+", "", lines[-1]) if lines else "no reason given"
    return re.sub(r"0x[0-9a-f]{5,}", "0x…", chosen)[:MAX_MESSAGE_CHARACTERS]
