"""On whose behalf a request to the host platform is made, as far as the platform may be told.

Attack it stops (T8): "no user" read as "any user". The platform always hears which of three it is: a user, who is named; a user who is
withheld, because the extension has no cap:user.read in force; or the system, where nobody stands behind the call (schedules, events).
"""

from __future__ import annotations

from enum import StrEnum

from runnerd.capabilities.denials import explain_denial
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.platform.client import is_field_value
from runnerd.capabilities.results import HostResult

USER_READ = "user.read"
WITHHELD = "withheld"
_UNSPECIFIED = "unspecified"


class Actor(StrEnum):
    """Who acts, for the header `x-ext-actor`."""

    USER = "user"
    WITHHELD = WITHHELD
    SYSTEM = "system"


def actor_of(grant: InvocationGrant) -> Actor:
    """Tell on whose behalf an invocation acts."""
    if grant.user is None:
        return Actor.SYSTEM
    return Actor.USER if USER_READ in grant.capabilities else Actor.WITHHELD


def headers_of(grant: InvocationGrant) -> tuple[tuple[str, str], ...]:
    """Return the header fields that every request has."""
    return (
        ("user-agent", "extrunner"),
        ("accept-encoding", "identity"),
        ("x-request-id", grant.request_id),
        ("x-alga-tenant", grant.tenant_id),
        ("x-alga-extension", grant.extension_id),
        ("x-ext-install-id", grant.install_id),
        ("x-ext-version-id", grant.version_id),
        ("x-ext-actor", actor_of(grant).value),
    )


def user_headers_of(grant: InvocationGrant) -> tuple[tuple[str, str], ...]:
    """Return the fields that name the user, where there is one that may be named. An address that no field can hold is left out."""
    user = grant.user
    if user is None or actor_of(grant) is not Actor.USER:
        return ()
    email = (("x-user-email", user.email),) if is_field_value(user.email) else ()
    return (("x-user-id", user.user_id), *email)


def user_object_of(grant: InvocationGrant) -> dict[str, str] | None:
    """Return the object `user` of an internal request; None for the system.

    A withheld user is sent as one whom no platform knows: a platform that has never heard of `x-ext-actor` then checks the rights of
    nobody and refuses, instead of checking none at all.
    """
    user = grant.user
    if user is None:
        return None
    if actor_of(grant) is Actor.WITHHELD:
        return {"userId": WITHHELD, "userType": WITHHELD}
    return {"userId": user.user_id, "userType": user.user_type or _UNSPECIFIED, "proof": "token" if user.proven else "service"}


def explain_refusal(grant: InvocationGrant, result: HostResult) -> HostResult:
    """Add to the platform's refusal what would help where it could not check the rights of a user whom we withheld."""
    if actor_of(grant) is not Actor.WITHHELD:
        return result
    explanation = explain_denial(USER_READ, declared=grant.declared, granted=grant.granted)
    return HostResult(value=result.value, error=result.error, denial=explanation)
