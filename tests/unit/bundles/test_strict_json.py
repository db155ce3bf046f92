from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.bundles.strict_json import MAX_INTEGER, JsonValue, StrictJsonError, place_of, read_json


def read(text: str | bytes, max_depth: int = 16) -> JsonValue:
    data = text if isinstance(text, bytes) else text.encode()
    return read_json(data, max_bytes=10_000, max_depth=max_depth)


def as_lists(value: JsonValue) -> object:
    if isinstance(value, tuple):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return value


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(-1e15, 1e15, allow_nan=False).filter(lambda number: len(repr(number)) < 60)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_DOCUMENTS, st.booleans())
def test_what_python_writes_is_read_back(document: object, ascii_only: bool) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=1)
    read_back = as_lists(read_json(text.encode(), max_bytes=1_000_000, max_depth=64))
    assert read_back == document
    assert json.dumps(read_back) == json.dumps(document)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=60) | st.text('{}[]":,\\u0dD8e+-.19ntf \n', max_size=40).map(str.encode))
def test_whatever_comes_it_is_read_as_python_reads_it_or_refused(data: bytes) -> None:
    try:
        document = read(data)
    except StrictJsonError:
        return
    assert as_lists(document) == json.loads(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" {} ", {}),
        ("[]", ()),
        ('"\\u0041\\n\\/\\ud83d\\ude00"', "A\n/😀"),
        ("-0", 0),
        ("1e2", 100.0),
        ("9007199254740991", MAX_INTEGER),
        ("-9007199254740991", -MAX_INTEGER),
        ("true", True),
        ("null", None),
    ],
)
def test_ordinary_json_is_read(text: str, value: JsonValue) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ('{"a":1,"a":2}', "a", "the key is given twice"),
        ('{"a":1,"\\u0061":2}', "a", "the key is given twice"),
        ('{"x":[{"b":0},{"b":1,"b":2}]}', "x[1].b", "the key is given twice"),
        ("NaN", "(top)", "not JSON"),
        ('{"a":Infinity}', "a", "not JSON"),
        ("-Infinity", "(top)", "a number is not JSON's"),
        ("9007199254740992", "(top)", "beyond 2^53"),
        ('{"n":-9007199254740993}', "n", "beyond 2^53"),
        ("1e16", "(top)", "beyond 2^53"),
        ("1e999", "(top)", "beyond 2^53"),
        ("1" * 65, "(top)", "longer than 64 characters"),
        ("01", "(top)", "something follows"),
        ("+1", "(top)", "not JSON"),
        (".5", "(top)", "not JSON"),
        ("1.", "(top)", "something follows"),
        ("٣", "(top)", "a number is not JSON's"),
        ('"\\ud800"', "(top)", "surrogate"),
        ('"\\udc00\\ud800"', "(top)", "surrogate"),
        ('"\\ud800\\u0041"', "(top)", "surrogate"),
        ('{"k\\udfff":1}', "(top)", "surrogate"),
        ('"\\u0000"', "(top)", "U+0000"),
        ('"a\nb"', "(top)", "control character"),
        ('"\\x41"', "(top)", "escape"),
        ('"\\u12"', "(top)", "escape"),
        ('"\\u+123"', "(top)", "escape"),
        ('"open', "(top)", "not closed"),
        ("[1,]", "[1]", "not JSON"),
        ('{"a":1,}', "(top)", "a key in double quotes"),
        ("{'a':1}", "(top)", "a key in double quotes"),
        ('{"a" 1}', "a", "a colon is missing"),
        ('{"a":1 "b":2}', "(top)", "a comma or closing brace"),
        ("[1 2]", "(top)", "a comma or closing bracket"),
        ("[1", "(top)", "a comma or closing bracket"),
        ("{} {}", "(top)", "something follows"),
        ("// note\n{}", "(top)", "not JSON"),
        ("", "(top)", "not JSON"),
        ("\ufeff{}", "(top)", "not JSON"),
        ("\u00a0{}", "(top)", "not JSON"),
    ],
)
def test_what_readers_disagree_about_is_refused_with_its_place(text: str, place: str, problem: str) -> None:
    with pytest.raises(StrictJsonError) as refusal:
        read(text)
    assert refusal.value.place == place
    assert problem in refusal.value.problem


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    for data in (b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', '"x"'.encode("utf-16")):
        with pytest.raises(StrictJsonError, match="not UTF-8"):
            read(data)


@pytest.mark.parametrize(("depth", "fits"), [(15, True), (16, True), (17, False)])
def test_depth_is_bounded(depth: int, fits: bool) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        text = opening * depth + ("" if opening == "[" else "1") + closing * depth
        if fits:
            read(text)
        else:
            with pytest.raises(StrictJsonError, match="deeper than 16"):
                read(text)


def test_absurd_depth_is_refused_and_not_a_crash() -> None:
    with pytest.raises(StrictJsonError, match="deeper than 16"):
        read_json(b"[" * 200_000, max_bytes=300_000, max_depth=16)


@pytest.mark.parametrize(("size", "fits"), [(9, True), (10, True), (11, False)])
def test_size_is_bounded(size: int, fits: bool) -> None:
    data = b'"' + b"x" * (size - 2) + b'"'
    if fits:
        assert read_json(data, max_bytes=10, max_depth=1) == "x" * (size - 2)
    else:
        with pytest.raises(StrictJsonError, match="longer than 10 bytes"):
            read_json(data, max_bytes=10, max_depth=1)


def test_a_refusal_tells_line_and_column() -> None:
    with pytest.raises(StrictJsonError, match=r"line 2, column 5"):
        read('{"a": 1,\n    b: 2}')


def test_foreign_keys_are_escaped_in_places() -> None:
    assert place_of(("a", 1, "b-c")) == "a[1].b-c"
    assert place_of(("\u202eevil", "\x1b[2J")) == "['\\u202eevil']['\\x1b[2J']"
    assert len(place_of(("k" * 5_000,))) < 100


def test_numbers_are_finite() -> None:
    value = read("1e-400")
    assert isinstance(value, float)
    assert math.isfinite(value)
