"""The answer to one brokered host call, as the worker will lower it for its guest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HostResult:
    """A value of the function's (ok) shape, or the name of a case of its error enum. Never both."""

    value: object = None
    """Set where `error` is None; None is also the value of a function that answers nothing, and an absent option."""
    error: str | None = None
    denial: Mapping[str, str] | None = None
    """For the execution log, where the call was refused, or passed only because a list is counted for a while: capability, why, change."""


def succeeded(value: object = None) -> HostResult:
    """Answer with `value`."""
    return HostResult(value=value)


def failed(case: str) -> HostResult:
    """Answer with the error case `case`."""
    return HostResult(error=case)
