"""T5: of all spellings of a path only one is accepted, and what is accepted is read alike by whoever splits and decodes it."""

from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.paths import MAX_PATH_CHARACTERS, PathError, check_normal_form, segments_of


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("/", ("",)),
        ("/a", ("a",)),
        ("/a/", ("a", "")),
        ("/a/b.c/~d", ("a", "b.c", "~d")),
        ("/a%20b", ("a b",)),
        ("/caf%C3%A9/caf%c3%a9", ("café", "café")),
        ("/a:b@c;d=e,f", ("a:b@c;d=e,f",)),
        ("/a%2Bb", ("a+b",)),
        ("/100%25", ("100%",)),
        ("/...", ("...",)),
        ("/" + "a" * (MAX_PATH_CHARACTERS - 1), ("a" * (MAX_PATH_CHARACTERS - 1),)),
    ],
)
def test_normal_form__passes_and_splits(path: str, segments: tuple[str, ...]) -> None:
    check_normal_form(path)
    assert segments_of(path) == segments


@pytest.mark.parametrize(
    "path",
    [
        *("", "a", "//", "/a//b", "//a", "/a//"),
        *("/.", "/..", "/a/./b", "/a/../b", "/a/..", "/%2e%2e/a", "/%2E"),
        *("/a%2fb", "/a%2Fb", "/a%5cb", "/a\\b", "/a%00", "/a%0a", "/a%1f", "/a%7F"),
        *("/%61", "/%7e", "/%41%42", "/a%", "/a%2", "/a%zz"),
        *("/a b", "/a?b", "/a#b", "/a<b>", '/a"b', "/a{b}", "/a|b", "/a^b", "/a`b", "/a[b]", "/é", "/a\n", "/a\x00", "/\xff"),
        *("/%C0%AF", "/%FF", "/%ED%A0%80"),
        "/" + "a" * MAX_PATH_CHARACTERS,
    ],
)
def test_anything_else__is_refused(path: str) -> None:
    with pytest.raises(PathError):
        check_normal_form(path)


@given(st.one_of(st.text(max_size=40), st.text(alphabet="/.%25eEfF0aA\\~", max_size=24).map(lambda rest: "/" + rest)))
def test_what_is_accepted__has_no_second_reading(path: str) -> None:
    try:
        check_normal_form(path)
    except PathError:
        return
    segments = segments_of(path)
    assert "" not in segments[:-1]
    assert all(not {"/", "\\", "\x00"} & set(segment) and segment not in {".", ".."} for segment in segments)
    # Decoded first or split first: the same.
    assert unquote(path) == "/" + "/".join(segments)


@given(
    st.lists(
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters="/\\\x7f", min_codepoint=0x20), min_size=1, max_size=8), max_size=5
    )
)
def test_the_usual_encoding_of_segments__is_accepted(segments: list[str]) -> None:
    if {".", ".."} & set(segments):
        return
    path = "/" + "/".join(quote(segment, safe="~") for segment in segments)
    check_normal_form(path)
    assert segments_of(path) == (tuple(segments) or ("",))
