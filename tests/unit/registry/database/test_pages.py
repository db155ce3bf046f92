from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.errors import Reason, RefusalError
from registry.services.pages import MAX_PAGE, checked_limit, decode_cursor, encode_cursor
from registry.services.storage import KEY_CHARACTERS, NAMESPACE_CHARACTERS
from tests.fakes.registry_rows import UNKNOWN_ID


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50), min_size=1, max_size=3))
def test_cursor__round_trip(parts: list[str]) -> None:
    assert decode_cursor(encode_cursor(*parts), len(parts)) == tuple(parts)


def _raw(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        "====",
        "!!!!",
        *map(_raw, ("a", ["a", "b"], [1], [None], {"0": "a"}, ["\0"], ["\ud800"])),
        "A" * 8_193,
        base64.urlsafe_b64encode(b"[" * 1_500).decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
def test_cursor__foreign__is_refused(cursor: str) -> None:
    with pytest.raises(RefusalError) as caught:
        decode_cursor(cursor, 1)
    assert caught.value.reason is Reason.INVALID_REQUEST


@pytest.mark.parametrize(("limit", "allowed"), [(-1, False), (0, False), (1, True), (MAX_PAGE, True), (MAX_PAGE + 1, False)])
def test_limit__bounds(limit: int, allowed: bool) -> None:
    if allowed:
        assert checked_limit(limit) == limit
    else:
        with pytest.raises(RefusalError):
            checked_limit(limit)


def test_cursor__of_the_longest_namespace_and_key__is_taken_back() -> None:
    # Every character outside the basic plane becomes twelve in JSON; such keys must not hide the rest of a namespace.
    parts = (UNKNOWN_ID, "\N{GRINNING FACE}" * NAMESPACE_CHARACTERS, "\N{GRINNING FACE}" * KEY_CHARACTERS)
    assert decode_cursor(encode_cursor(*parts), 3) == parts
