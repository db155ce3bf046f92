from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerd.engine.answers import DROPPED, GuestAnswer, check_answer, check_headers
from runnerd.engine.outcomes import Completed, GuestError, LimitExceeded, LimitKind


def answer(status: int = 200, headers: list[tuple[str, str]] | None = None, body: bytes | None = b"x") -> GuestAnswer:
    return GuestAnswer(status, headers or [], body)


def check(**changes: Any) -> object:
    return check_answer(answer(**changes), response_bytes=10)


@pytest.mark.parametrize(
    ("status", "valid"), [(0, False), (101, False), (199, False), (200, True), (599, True), (600, False), (65_535, False)]
)
def test_status__bounds(status: int, valid: bool) -> None:
    assert isinstance(check(status=status), Completed if valid else GuestError)


@pytest.mark.parametrize("status", [204, 304])
def test_status_without_body__body__is_an_error_and_an_empty_one_is_none(status: int) -> None:
    assert isinstance(check(status=status, body=b"x"), GuestError)
    assert check(status=status, body=b"") == Completed(status=status, headers=(), body=None)
    assert check(status=status, body=None) == Completed(status=status, headers=(), body=None)


@pytest.mark.parametrize(("size", "passes"), [(9, True), (10, True), (11, False)])
def test_body__limit(size: int, passes: bool) -> None:
    assert isinstance(check(body=b"x" * size), Completed if passes else LimitExceeded)


@pytest.mark.parametrize(("count", "passes"), [(63, True), (64, True), (65, False)])
def test_headers__count(count: int, passes: bool) -> None:
    assert isinstance(check_headers([("a", "b")] * count), tuple if passes else LimitExceeded)


@pytest.mark.parametrize(("size", "passes"), [(16 * 1024 - 1, True), (16 * 1024, True), (16 * 1024 + 1, False)])
def test_headers__size(size: int, passes: bool) -> None:
    found = check_headers([("a", "x" * (size - 1))])

    assert isinstance(found, tuple) if passes else found == LimitExceeded(limit=LimitKind.HEADERS, used=size, allowed=16 * 1024)


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "ä", "a\0", "(a)", " a", "a\t"])
def test_headers__name_that_is_no_token__is_an_error(name: str) -> None:
    assert isinstance(check_headers([(name, "x")]), GuestError)


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\0", "\x1b[31m", "a\x7f"])
def test_headers__value_with_control_characters__is_an_error(value: str) -> None:
    assert isinstance(check_headers([("a", value)]), GuestError)


@pytest.mark.parametrize("name", [*DROPPED, "Set-Cookie", "TRANSFER-ENCODING", "x-alga-tenant", "X-Alga-Anything"])
def test_headers__not_the_guests_to_set__are_dropped(name: str) -> None:
    assert check_headers([("A", "1"), (name, "x"), ("a", "2")]) == (("a", "1"), ("a", "2"))


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=40)), max_size=70))
def test_headers__whatever_a_guest_sends__comes_out_safe_or_not_at_all(headers: list[tuple[str, str]]) -> None:
    found = check_headers(headers)

    if isinstance(found, tuple):
        for name, value in found:
            assert name == name.lower()
            assert name.isascii()
            assert not any(ord(character) < 32 and character != "\t" for character in name + value)
            assert name not in DROPPED
            assert not name.startswith("x-alga-")
