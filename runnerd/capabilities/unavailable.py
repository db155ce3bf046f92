"""Host functions that this runner has nothing behind: each answers all the same, in its own shape.

They answer even where the capability is granted, so that an extension built against the whole world runs. The platform's interfaces answer
as CONTRACT §4 says for a runner without a platform address.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from runnerd.capabilities.answers import not_offered
from runnerd.capabilities.catalog import FUNCTIONS, HostFunction
from runnerd.capabilities.denials import explain_absence
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler
from runnerd.capabilities.results import HostResult

_CASES: Mapping[str, str] = MappingProxyType(
    {
        "alga:extension/ui-proxy": "route-not-found",
        "alga:extension/clients": "internal",
        "alga:extension/services": "internal",
    }
)
"""Interface → its answer without a platform behind it, where that is not the denial of the catalog."""


def unavailable_handlers(*interfaces: str) -> Mapping[int, Handler]:
    """Return the handlers of `interfaces`, by number of the function."""
    return {function.number: _handler(function) for function in FUNCTIONS if function.interface in interfaces}


def _handler(function: HostFunction) -> Handler:
    async def answer(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        del grant, arguments
        case = _CASES.get(function.interface)
        result = not_offered(function)
        return HostResult(
            value=result.value if case is None else None,
            error=result.error if case is None else case,
            denial=explain_absence(function.capability),
        )

    return answer
