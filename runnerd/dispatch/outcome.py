"""How an execution can end, and what it used. A guest's failure is an outcome, never an error."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class TrapKind(StrEnum):
    """Why a guest trapped; the lower-case names of extrunner.runner.v1.TrapKind."""

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
    """Which limit ended an execution; the lower-case names of extrunner.runner.v1.LimitKind."""

    WALL_TIME = "wall_time"
    CPU_TIME = "cpu_time"
    FUEL = "fuel"
    MEMORY = "memory"
    RESPONSE_SIZE = "response_size"
    HOST_CALLS = "host_calls"
    HEADERS = "headers"
    TABLES = "tables"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The guest answered."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trapped:
    """The guest trapped."""

    kind: TrapKind
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitExceeded:
    """A limit ended it. `used` and `allowed` are in the limit's unit (milliseconds, fuel, bytes, number)."""

    limit: LimitKind
    used: int
    allowed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestError:
    """The guest answered something that is not an HTTP response."""

    message: str


Outcome = Completed | Trapped | LimitExceeded | GuestError

OUTCOME_NAMES: dict[type[Outcome], str] = {
    Completed: "completed",
    Trapped: "trapped",
    LimitExceeded: "limit_exceeded",
    GuestError: "guest_error",
}
"""The words of the execution log and of the metric's label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one execution used, as the daemon measured it; a worker's figures are clamped to it."""

    wall_us: int
    queue_us: int
    cpu_us: int
    fuel: int
    peak_memory_bytes: int | None
    host_calls: int
    egress_request_bytes: int = 0
    egress_response_bytes: int = 0


def reason_of(outcome: Outcome) -> str | None:
    """Return the word of the execution log that says why, where there is one."""
    match outcome:
        case Trapped():
            return outcome.kind.value
        case LimitExceeded():
            return outcome.limit.value
        case _:
            return None
