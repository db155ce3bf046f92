"""How an execution can end, and what it used. A guest's failure is an outcome, never an error."""

from __future__ import annotations

from dataclasses import dataclass

from runnerd.engine.outcomes import Completed, GuestError, LimitExceeded, LimitKind, TrapKind, Trapped

__all__ = [
    "OUTCOME_NAMES",
    "Completed",
    "GuestError",
    "LimitExceeded",
    "LimitKind",
    "Outcome",
    "TrapKind",
    "Trapped",
    "Usage",
    "reason_of",
]

Outcome = Completed | Trapped | LimitExceeded | GuestError
"""Those of the engine but its internal error, which is none of the guest's."""

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
