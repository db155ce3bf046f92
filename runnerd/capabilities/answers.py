"""The answers that every host function has: refused for want of the capability, not offered by this runner, and failed.

No function of the catalog may leave a guest without an answer of its declared shape; a guest handles "denied", it cannot handle a trap.
"""

from __future__ import annotations

import copy

from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.results import HostResult, failed, succeeded
from runnerd.capabilities.shapes import Record

_FAILED = "the host could not do it; try again later"
_NOT_OFFERED = "this runner does not offer it"
_INTERNAL = "internal"


def denied(function: HostFunction) -> HostResult:
    """Answer as the catalog says for a capability that is not in force."""
    if function.error is not None:
        return failed(str(function.denied))
    # A copy: the catalog's value is shared by every call.
    return succeeded(copy.deepcopy(function.denied))


def not_offered(function: HostFunction) -> HostResult:
    """Answer for a function that is granted and that this runner has nothing behind: its denial, with words of its own where it has any."""
    if _says_success(function):
        return succeeded(_unsuccessful(function, _NOT_OFFERED))
    return denied(function)


def broken(function: HostFunction) -> HostResult:
    """Answer for a failure of ours, without saying which."""
    if function.error is not None:
        return failed(_INTERNAL if _INTERNAL in function.error.cases else function.error.cases[0])
    if _says_success(function):
        return succeeded(_unsuccessful(function, _FAILED))
    return denied(function)


def _says_success(function: HostFunction) -> bool:
    return isinstance(function.result, Record) and {"success", "error"} <= set(function.result.keys)


def _unsuccessful(function: HostFunction, why: str) -> dict[str, object]:
    keys = function.result.keys if isinstance(function.result, Record) else ()
    return dict.fromkeys(keys) | {"success": False, "error": why}
