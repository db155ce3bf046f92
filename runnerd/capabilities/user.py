"""alga:extension/user and user-v2: who is behind the invocation (cap:user.read). Without a user they answer "not-available"."""

from __future__ import annotations

from collections.abc import Mapping

from runnerd.capabilities.grants import GuestUser, InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named
from runnerd.capabilities.results import HostResult, failed, succeeded

_NOT_AVAILABLE = "not-available"


def user_handlers() -> Mapping[int, Handler]:
    """Return the handlers, by number of the function."""
    return {
        function_named("alga:extension/user", "get-user").number: _get_user,
        function_named("alga:extension/user-v2", "get-user").number: _get_user_v2,
    }


async def _get_user(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
    del arguments
    return failed(_NOT_AVAILABLE) if grant.user is None else succeeded(_user_data(grant, grant.user))


async def _get_user_v2(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
    del arguments
    user = grant.user
    if user is None:
        return failed(_NOT_AVAILABLE)
    further = {"client_id": user.client_id, "additional_fields": sorted(user.additional_fields.items())}
    return succeeded(_user_data(grant, user) | further)


def _user_data(grant: InvocationGrant, user: GuestUser) -> dict[str, object]:
    return {
        "tenant_id": grant.tenant_id,
        "client_name": user.client_name,
        "user_id": user.user_id,
        "user_email": user.email,
        "user_name": user.name,
        "user_type": user.user_type,
    }
