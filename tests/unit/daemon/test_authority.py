"""T8: scope × assertion. Tenant, trigger and user of a call are proven or refused, never dropped."""

from __future__ import annotations

from typing import Any

import pytest

from registry.domain.errors import Reason, RefusalError
from registry.tokens import UserToken
from runnerd.capabilities.grants import GuestUser
from runnerd.dispatch.authority import authorise
from runnerd.dispatch.request import Trigger
from tests.fakes.dispatch_kit import TENANT, make_caller, make_request

USER = GuestUser(user_id="u-1", email="a@example.com")
TOKEN = UserToken(tenant=TENANT, subject="u-1", roles=frozenset({"ext:invoke", "admin"}), email="a@example.com", name="A")


def refused(caller: dict[str, Any], request: dict[str, Any]) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        authorise(make_caller(**caller), make_request(**request))
    return caught.value


@pytest.mark.parametrize(
    ("request_changes", "scope"),
    [
        ({"trigger": Trigger.EVENT}, "trigger:event"),
        ({"trigger": Trigger.SCHEDULE}, "trigger:schedule"),
        ({"asserted_user": USER}, "assert-user"),
    ],
)
def test_assertion__needs_its_scope_and_no_other(request_changes: dict[str, Any], scope: str) -> None:
    others = frozenset({"execute", "warm", "info", "assert-user", "trigger:event", "trigger:schedule"}) - {scope}
    error = refused({"scopes": others}, request_changes)
    assert (error.reason, error.metadata) == (Reason.PERMISSION_MISSING, {"scope": scope})
    authorise(make_caller(scopes=frozenset({"execute", scope})), make_request(**request_changes))


def test_tenant__must_be_covered() -> None:
    assert refused({"tenants": frozenset({"tenant-b"})}, {}).reason is Reason.TENANT_FORBIDDEN
    authorise(make_caller(tenants=frozenset({TENANT})), make_request())
    authorise(make_caller(tenants=frozenset({"*"})), make_request())


def test_subject_token__proves_user_and_roles() -> None:
    authority = authorise(make_caller(subject=TOKEN, scopes=frozenset({"execute"})), make_request())
    assert authority.user is not None
    assert (authority.user.user_id, authority.user.name) == ("u-1", "A")
    assert authority.user.proven
    assert authority.roles == {"ext:invoke", "admin"}


def test_asserted_user__has_no_roles() -> None:
    authority = authorise(make_caller(), make_request(asserted_user=USER))
    assert authority.roles == frozenset()
    assert authority.user is not None
    assert not authority.user.proven, "a service says so"
    assert authorise(make_caller(), make_request()).user is None


@pytest.mark.parametrize("tenant", ["tenant-b", "*"])
def test_subject_of_another_tenant__is_refused(tenant: str) -> None:
    subject = UserToken(tenant=tenant, subject="u-1", roles=frozenset({"ext:invoke"}))
    assert refused({"subject": subject}, {}).reason is Reason.TENANT_FORBIDDEN


def test_subject_without_the_invoke_role__is_refused() -> None:
    subject = UserToken(tenant=TENANT, subject="u-1", roles=frozenset({"ext:read"}))
    assert refused({"subject": subject}, {}).reason is Reason.PERMISSION_MISSING


@pytest.mark.parametrize(
    "asserted",
    [
        GuestUser(user_id="u-2"),
        GuestUser(user_id="u-1", email="b@example.com"),
        GuestUser(user_id="u-1", user_type="internal"),
        GuestUser(user_id="u-1", client_id="c"),
    ],
)
def test_asserted_user_that_differs_from_the_token__is_refused_even_with_the_scope(asserted: GuestUser) -> None:
    assert refused({"subject": TOKEN}, {"asserted_user": asserted}).reason is Reason.PERMISSION_MISSING


def test_asserted_user_that_agrees__changes_nothing() -> None:
    authority = authorise(make_caller(subject=TOKEN, scopes=frozenset({"execute"})), make_request(asserted_user=USER))
    assert authority.user is not None
    assert authority.user.name == "A"


def test_additional_fields_beside_a_token__need_the_scope() -> None:
    asserted = GuestUser(user_id="u-1", additional_fields={"department": "x"})
    error = refused({"subject": TOKEN, "scopes": frozenset({"execute"})}, {"asserted_user": asserted})
    assert error.metadata == {"scope": "assert-user"}
    authority = authorise(make_caller(subject=TOKEN), make_request(asserted_user=asserted))
    assert authority.user is not None
    assert authority.user.additional_fields == {"department": "x"}
