"""Roles and tenants of a caller."""

from __future__ import annotations

import pytest

from gateway.auth import MANAGE, READ, Caller
from registry.domain.errors import Reason, RefusalError
from registry.tokens import UserToken


def caller(*roles: str, tenant: str = "t1") -> Caller:
    return Caller(user=UserToken(tenant=tenant, subject="u1", roles=frozenset(roles)), token="secret-token")


def refused(who: Caller, named: str | None, *roles: str) -> Reason:
    with pytest.raises(RefusalError) as refusal:
        who.tenant(named, *roles)
    return refusal.value.reason


def test_token__is_in_no_text() -> None:
    assert "secret-token" not in repr(caller())


@pytest.mark.parametrize("named", [None, "t1"])
def test_own_tenant(named: str | None) -> None:
    assert caller("ext:read").tenant(named, READ, MANAGE) == "t1"


@pytest.mark.parametrize(
    ("who", "named", "reason"),
    [
        (caller("ext:read"), "t2", Reason.TENANT_FORBIDDEN),
        (caller("ext:manage", "ext:publish"), "t2", Reason.TENANT_FORBIDDEN),
        (caller("ext:read"), "*", Reason.INVALID_REQUEST),
        (caller("ext:invoke"), None, Reason.PERMISSION_MISSING),
        (caller("ext:invoke"), "t2", Reason.PERMISSION_MISSING),
        (caller(), None, Reason.PERMISSION_MISSING),
        (caller("ext:publish", tenant="*"), "t1", Reason.PERMISSION_MISSING),
        (caller("ext:operate", tenant="*"), None, Reason.INVALID_REQUEST),
        (caller("ext:operate", tenant="*"), "*", Reason.INVALID_REQUEST),
        (caller("ext:operate", tenant="*"), "t 1", Reason.INVALID_REQUEST),
    ],
)
def test_refusals(who: Caller, named: str | None, reason: Reason) -> None:
    assert refused(who, named, READ, MANAGE) is reason


@pytest.mark.parametrize("tenant", ["*", "t1"])
def test_operator__names_any_tenant(tenant: str) -> None:
    assert caller("ext:operate", tenant=tenant).tenant("t2", MANAGE) == "t2"
