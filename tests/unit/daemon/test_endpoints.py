"""T5: a path that is not in normal form never matches anything, and roles cannot be walked around."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.errors import Reason, RefusalError
from registry.domain.paths import PathError, check_normal_form
from registry.domain.records import Endpoint
from runnerd.dispatch.endpoints import admit, find_endpoint, is_enforced

ADMIN = Endpoint(method="GET", path="/admin/:id", roles=("admin",))
OPEN = Endpoint(method="GET", path="/notes/:id")
ME = Endpoint(method="GET", path="/admin/me")
SLASHED = Endpoint(method="GET", path="/list/")
ENDPOINTS = (ADMIN, OPEN, ME, SLASHED)


def admitted(path: str, *, roles: frozenset[str] = frozenset(), policy: str = "advisory", method: str = "GET") -> Endpoint | None:
    return admit(ENDPOINTS, policy, method=method, path=path, roles=roles)


def reason(path: str, **rest: object) -> Reason:
    with pytest.raises(RefusalError) as refused:
        admitted(path, **rest)  # type: ignore[arg-type]
    return refused.value.reason


def test_match__takes_the_most_specific() -> None:
    assert find_endpoint(ENDPOINTS, "GET", "/admin/me") is ME
    assert find_endpoint(ENDPOINTS, "GET", "/admin/you") is ADMIN
    assert find_endpoint(ENDPOINTS, "GET", "/notes/1") is OPEN
    assert find_endpoint(ENDPOINTS, "POST", "/notes/1") is None
    assert find_endpoint(ENDPOINTS, "GET", "/notes") is None
    assert find_endpoint(ENDPOINTS, "GET", "/notes/1/2") is None
    assert find_endpoint(ENDPOINTS, "HEAD", "/notes/1") is OPEN


def test_roles__decide() -> None:
    assert admitted("/admin/7", roles=frozenset({"admin"})) is ADMIN
    assert reason("/admin/7") is Reason.PERMISSION_MISSING
    assert reason("/admin/7", roles=frozenset({"Admin", "ext:invoke"})) is Reason.PERMISSION_MISSING
    assert reason("/admin/7", method="HEAD") is Reason.PERMISSION_MISSING


def test_roles_anywhere__enforce_everywhere() -> None:
    for path in ("/other", "/Admin/7", "/admin", "/admin/7/8"):
        assert reason(path) is Reason.ENDPOINT_NOT_FOUND
    assert reason("/admin/7", method="POST") is Reason.ENDPOINT_NOT_FOUND


def test_policy__without_roles() -> None:
    free = (OPEN,)
    assert admit(free, "advisory", method="GET", path="/other", roles=frozenset()) is None
    with pytest.raises(RefusalError) as refused:
        admit(free, "enforce", method="GET", path="/other", roles=frozenset())
    assert refused.value.reason is Reason.ENDPOINT_NOT_FOUND
    assert is_enforced(free, "something else")
    assert admit((), "advisory", method="GET", path="/", roles=frozenset()) is None


def test_slash_at_the_end__only_where_declared() -> None:
    assert admitted("/list/", roles=frozenset({"admin"})) is SLASHED
    assert reason("/admin/7/", roles=frozenset({"admin"})) is Reason.INVALID_REQUEST
    assert reason("/list", roles=frozenset({"admin"})) is Reason.ENDPOINT_NOT_FOUND
    with pytest.raises(RefusalError):
        admit((OPEN,), "advisory", method="GET", path="/x/", roles=frozenset())


def test_parameter__does_not_match_an_empty_segment() -> None:
    assert find_endpoint((OPEN,), "GET", "/notes/") is None


def test_escaped_reserved_characters__match_as_the_guest_reads_them() -> None:
    special = Endpoint(method="GET", path="/report@admin", roles=("admin",))
    anything = Endpoint(method="GET", path="/:name")
    for path in ("/report@admin", "/report%40admin"):
        assert find_endpoint((anything, special), "GET", path) is special


_pieces = st.sampled_from(
    ["admin", "Admin", "ADMIN", "%61dmin", "a%64min", ".", "..", "", "7", "%37", "%2f", "%5c", "x", "%2e", ";", "me", "%40"]
)


@given(st.lists(_pieces, min_size=1, max_size=5).map(lambda pieces: "/" + "/".join(pieces)), st.sampled_from(["GET", "HEAD"]))
def test_no_variant_of_a_protected_path__passes_without_the_role(path: str, method: str) -> None:
    """What a lenient router would read as /admin/… either is refused or needs the role."""
    try:
        check_normal_form(path)
        endpoint = admit((ADMIN, OPEN), "advisory", method=method, path=path, roles=frozenset())
    except (PathError, RefusalError):
        return
    assert endpoint is OPEN
    lenient = [part for part in unquote(unquote(path)).replace("\\", "/").lower().split("/") if part not in {"", "."}]
    assert lenient[0] != "admin"


def test_lists_with_equal_identity_over_time__are_not_mistaken_for_each_other() -> None:
    """What is remembered by identity must not outlive it: many short-lived lists, each with its own path."""
    for number in range(2_000):
        endpoints = (Endpoint(method="GET", path=f"/only/{number}"),)
        assert find_endpoint(endpoints, "GET", f"/only/{number}") is endpoints[0]
        assert find_endpoint(endpoints, "GET", f"/only/{number - 1}") is None


def test_list_that_changes__is_read_anew() -> None:
    endpoints = [Endpoint(method="GET", path="/first")]
    assert find_endpoint(endpoints, "GET", "/first") is not None
    endpoints[0] = Endpoint(method="GET", path="/second")
    assert find_endpoint(endpoints, "GET", "/first") is None
