"""Who may ask for what: tenant, trigger and user of a call against the credential that brought it (T8).

The attack it stops: a service's credential used for a tenant it was not given for, or to speak as any user of any tenant, or as
the scheduler, whom user checks do not apply to. What is not proven is refused, never silently dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from registry.domain.errors import Reason, RefusalError
from registry.tokens import UserToken
from runnerd.capabilities.grants import GuestUser
from runnerd.dispatch.request import Caller, ExecutionRequest, Trigger

ASSERT_USER = "assert-user"
INVOKE_ROLE = "ext:invoke"
_TRIGGER_SCOPES = {Trigger.EVENT: "trigger:event", Trigger.SCHEDULE: "trigger:schedule"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """On whose behalf a call runs."""

    user: GuestUser | None
    roles: frozenset[str]
    """Proven by the user's own token; empty without one, because a service cannot assert roles."""


def authorise(caller: Caller, request: ExecutionRequest) -> Authority:
    """Check what `request` claims against what `caller` proved.

    Raises:
        RefusalError: TENANT_FORBIDDEN or PERMISSION_MISSING.
    """
    # (1) The service must have been given this tenant.
    if not caller.service.covers(request.tenant_id):
        raise RefusalError(Reason.TENANT_FORBIDDEN, "The service token does not cover this tenant; use one whose tenants include it.")
    # (2) A trigger other than HTTP is an assertion.
    scope = _TRIGGER_SCOPES.get(request.trigger)
    if scope is not None:
        _require_scope(caller, scope, f"The trigger {request.trigger.value!r}")
    # (3) A user's own token proves the user; without one the user is an assertion.
    if caller.subject is not None:
        return _proven(caller, caller.subject, request)
    if request.asserted_user is not None:
        _require_scope(caller, ASSERT_USER, "A user without the user's own token")
    return Authority(user=request.asserted_user, roles=frozenset())


def _proven(caller: Caller, subject: UserToken, request: ExecutionRequest) -> Authority:
    # SECURITY: also refuses tokens for "every tenant"; those are for operators, not for calling extensions.
    if subject.tenant != request.tenant_id:
        raise RefusalError(Reason.TENANT_FORBIDDEN, "The user's token belongs to another tenant than the request names.")
    if INVOKE_ROLE not in subject.roles:
        raise RefusalError(Reason.PERMISSION_MISSING, f"The user lacks the role {INVOKE_ROLE}.", metadata={"role": INVOKE_ROLE})
    user = GuestUser(
        user_id=subject.subject,
        email=subject.email or "",
        name=subject.name or "",
        user_type=subject.type or "",
        client_name=subject.client_name or "",
        client_id=subject.client_id,
        proven=True,
    )
    asserted = request.asserted_user
    if asserted is not None:
        if _contradicts(asserted, user):
            raise RefusalError(
                Reason.PERMISSION_MISSING,
                "context.user differs from the user's own token; leave it out, the token wins.",
                metadata={"field": "context.user"},
            )
        if asserted.additional_fields:
            _require_scope(caller, ASSERT_USER, "context.user.additional_fields")
            user = replace(user, additional_fields=asserted.additional_fields)
    return Authority(user=user, roles=subject.roles)


def _contradicts(asserted: GuestUser, proven: GuestUser) -> bool:
    if asserted.user_id != proven.user_id:
        return True
    pairs = (
        (asserted.email, proven.email),
        (asserted.name, proven.name),
        (asserted.user_type, proven.user_type),
        (asserted.client_name, proven.client_name),
        (asserted.client_id, proven.client_id),
    )
    return any(claim and claim != fact for claim, fact in pairs)


def _require_scope(caller: Caller, scope: str, what: str) -> None:
    if scope not in caller.service.scopes:
        raise RefusalError(Reason.PERMISSION_MISSING, f"{what} needs a service token with the scope {scope}.", metadata={"scope": scope})
