from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.cli.rendering import MAX_VISIBLE_CHARACTERS, table, visible, visible_block, visible_json

HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "cap:\u202estorage.kv",
    "\u2066isolate\u2069",
    "zero\u200bwidth\ufeff",
    "tag\U000e0041",
    "private\ue000",
    "line\u2028para\u2029",
    "nul\0bell\x07del\x7f",
    "carriage\rreturn",
    "lone\ud800surrogate",
]


def unshown(text: str) -> list[str]:
    return [character for character in text if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}]


@pytest.mark.parametrize("text", HOSTILE)
def test_visible__hostile_text__holds_no_hidden_character_and_says_what_was_there(text: str) -> None:
    shown = visible(text)
    assert unshown(shown) == []
    assert "\\" in shown


@given(st.text())
def test_visible__any_text__holds_no_hidden_character(text: str) -> None:
    assert unshown(visible(text)) == []
    assert set(unshown(visible_block(text))) <= {"\n", "\t"}


@given(st.text(max_size=200), st.text(max_size=200))
def test_visible__two_texts__are_told_apart(one: str, other: str) -> None:
    assert (visible(one) == visible(other)) == (one == other)


def test_visible__ordinary_text__is_left_alone() -> None:
    assert visible("Grüße, 東京: notes (1.0)") == "Grüße, 東京: notes (1.0)"


@pytest.mark.parametrize(
    ("length", "is_cut"), [(MAX_VISIBLE_CHARACTERS - 1, False), (MAX_VISIBLE_CHARACTERS, False), (MAX_VISIBLE_CHARACTERS + 1, True)]
)
def test_visible__around_the_limit__is_cut_and_says_so(length: int, is_cut: bool) -> None:
    shown = visible("x" * length)
    assert shown.endswith("… (cut)") == is_cut
    assert shown.count("x") == min(length, MAX_VISIBLE_CHARACTERS)


def test_visible_block__keeps_lines__and_escapes_the_rest() -> None:
    assert visible_block("a\n\tb\x1b[1m\r") == "a\n\tb\\x1b[1m\\r"


def test_visible_json__hostile_text__is_ascii_on_one_line_and_reads_back() -> None:
    document = {"name": "".join(HOSTILE[:-1]), "n": 1}
    shown = visible_json(document)
    assert shown.isascii()
    assert shown.isprintable()
    assert json.loads(shown) == document


def test_table__hostile_cells__cannot_leave_their_cell() -> None:
    shown = table([{"name": "a\nb\x1b[A", "list": ["\u202e"], "none": None}], ["name", "list", "none"])
    assert len(shown.splitlines()) == 2
    assert set(unshown(shown)) <= {"\n"}
    assert shown.splitlines()[1].split() == ["a\\nb\\x1b[A", '["\\\\u202e"]', "-"]
