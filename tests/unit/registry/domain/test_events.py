from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.events import (
    MAX_CONTENT_TYPE_CHARACTERS,
    MAX_KEY_CHARACTERS,
    MAX_TOPIC_CHARACTERS,
    EventError,
    checked_content_type,
    checked_key,
    other_owners,
    topic_of,
)

NAME = "com.acme.notes"


@pytest.mark.parametrize("topic", ["a", "note.added", "note_added", "a-1.b_2", "0", "a" * 64, ".".join(["a"] * 128), "extension.ext"])
def test_topic__is_put_below_the_extension(topic: str) -> None:
    assert topic_of(NAME, topic) == f"ext.com.acme.notes.{topic}"


def test_topic__with_its_own_prefix__is_not_doubled() -> None:
    assert topic_of(NAME, "ext.com.acme.notes.added") == "ext.com.acme.notes.added"


@pytest.mark.parametrize(
    "topic",
    [
        *("", ".", "a.", ".a", "a..b", "A", "a b", "a/b", "ä", "a\n", "a\0", "-a", "_a", "a.*", "#", "a" * 65, "a." * 128 + "a"),
        *("ext", "ext.", "ext.invoice.paid", "ext.com.acme", "ext.com.acme.notes", "ext.com.acme.notes.", "ext.com.acme.notesx.added"),
        *("ext.com.acme.notes.ext.com.acme.notes.a", "ext.com.acme.notes.ext.com.evil.a", "invoice.paid\u202e"),
    ],
)
def test_topic__malformed_or_of_somebody_else__is_refused(topic: str) -> None:
    with pytest.raises(EventError):
        topic_of(NAME, topic)


@given(st.text(max_size=80) | st.from_regex(r"(ext\.)?[a-z.]{0,40}", fullmatch=True))
def test_topic__whatever_is_tried__begins_with_the_extension(topic: str) -> None:
    try:
        full = topic_of(NAME, topic)
    except EventError:
        return
    assert full.startswith("ext.com.acme.notes.")
    assert len(full) <= len("ext.com.acme.notes.") + MAX_TOPIC_CHARACTERS
    assert topic_of(NAME, full) == full


def test_other_owners__are_the_longer_names_that_the_topic_begins_with() -> None:
    assert other_owners("com.acme", "ext.com.acme.notes.added") == ["com.acme.notes"]
    assert other_owners("com.acme", "ext.com.acme.a.b.c") == ["com.acme.a", "com.acme.a.b"]
    assert other_owners("com.acme", "ext.com.acme.added") == []


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain; charset=utf-8", 'a/b;c="d e";f=g', "application/vnd.acme+json", "a/b" + ";c=d" * 8]
)
def test_content_type__media_types__are_kept(content_type: str) -> None:
    assert checked_content_type(content_type) == content_type


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "json",
        "a/",
        "/b",
        "a/b;",
        "a/b; c",
        "a/b\r\nx-evil: 1",
        'a/b;c="\n"',
        "a/b;c=d\x00",
        "ä/b",
        "a/" + "b" * MAX_CONTENT_TYPE_CHARACTERS,
        "a/b" + ";c=d" * 9,
    ],
)
def test_content_type__anything_else__is_refused(content_type: str) -> None:
    with pytest.raises(EventError):
        checked_content_type(content_type)


def test_key__is_short_and_shows() -> None:
    for key in (None, "a", "Größe 7", "k" * MAX_KEY_CHARACTERS):
        assert checked_key(key) == key
    for bad in ("", "k" * (MAX_KEY_CHARACTERS + 1), "a\n", "\0", "\u202e"):
        with pytest.raises(EventError):
            checked_key(bad)
