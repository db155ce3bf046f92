"""Reads JSON so that every reader of the same bytes sees the same document, or none.

Attack: `{"capabilities": [], "capabilities": ["secrets.get"]}`. Python keeps the last of two equal keys, other tools show the
first, so that what a person consented to is not what runs (T32). Numbers beyond 2^53, NaN, unpaired surrogates, NUL and a byte
order mark are read differently by JavaScript and by PostgreSQL; depth without bound ends some readers. All are refused, with their place.
"""

from __future__ import annotations

import math
import re
from typing import NoReturn, TypeAlias, Union

from registry.bundles.text import show

JsonValue: TypeAlias = Union[bool, int, float, str, tuple["JsonValue", ...], dict[str, "JsonValue"], None]  # noqa: UP007 (| takes no forward reference)
"""Arrays are tuples: what was read is not changed any more."""

MAX_INTEGER = 2**53 - 1
"""Beyond this a JavaScript number is not exact."""

_TOP = "(top)"
_MAX_NUMBER_CHARACTERS = 64
_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_$-]{1,64}\Z")
_WORDS: tuple[tuple[str, JsonValue], ...] = (("true", True), ("false", False), ("null", None))
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HIGH = range(0xD800, 0xDC00)
_LOW = range(0xDC00, 0xE000)


class StrictJsonError(ValueError):
    """The bytes are not the JSON that is accepted.

    Args:
        place: where in the document, for example `api.endpoints[2].path`; "(top)" for the whole.
        problem: what is wrong, without foreign text in it.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem


def read_json(data: bytes, *, max_bytes: int, max_depth: int) -> JsonValue:
    """Read one JSON document.

    Args:
        data: UTF-8, without byte order mark.
        max_bytes: longer input is refused unread.
        max_depth: how many arrays and objects may lie in one another.

    Raises:
        StrictJsonError: the document is refused; names the place.
    """
    if len(data) > max_bytes:
        message = f"longer than {max_bytes} bytes"
        raise StrictJsonError(_TOP, message)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        message = f"byte {exc.start} is not UTF-8"
        raise StrictJsonError(_TOP, message) from exc
    return _Reader(text, max_depth).read()


def place_of(path: tuple[str | int, ...]) -> str:
    """Write a path into a document; foreign keys are shown escaped."""
    place = ""
    for step in path:
        if isinstance(step, int):
            place += f"[{step}]"
        elif _BARE_KEY.match(step):
            place += f".{step}" if place else step
        else:
            place += f"[{show(step, limit=64)}]"
    return place or _TOP


class _Reader:
    """Recursive descent; recursion is bounded by the depth that is allowed."""

    def __init__(self, text: str, max_depth: int) -> None:
        self._text = text
        self._at = 0
        self._max_depth = max_depth
        self._path: list[str | int] = []
        self._depth = 0

    def read(self) -> JsonValue:
        self._skip()
        value = self._value()
        if self._at != len(self._text):
            self._fail("something follows the document")
        return value

    def _fail(self, problem: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - self._text.rfind("\n", 0, self._at)
        raise StrictJsonError(place_of(tuple(self._path)), f"{problem} (line {line}, column {column})")

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> bool:
        if self._next() != character:
            return False
        self._at += 1
        self._skip()
        return True

    def _value(self) -> JsonValue:
        character = self._next()
        value: JsonValue
        if character == "{":
            value = self._object()
        elif character == "[":
            value = self._array()
        elif character == '"':
            value = self._string()
        elif character == "-" or character.isdecimal():
            value = self._number()
        else:
            value = self._word()
        self._skip()
        return value

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > self._max_depth:
            self._fail(f"nested deeper than {self._max_depth}")
        self._at += 1
        self._skip()

    def _object(self) -> dict[str, JsonValue]:
        self._enter()
        members: dict[str, JsonValue] = {}
        while not self._take("}"):
            if members and not self._take(","):
                self._fail("a comma or closing brace is missing")
            if self._next() != '"':
                self._fail("a key in double quotes is missing")
            key = self._string()
            self._skip()
            self._path.append(key)
            if key in members:
                self._fail("the key is given twice")
            if not self._take(":"):
                self._fail("a colon is missing")
            members[key] = self._value()
            self._path.pop()
        self._depth -= 1
        return members

    def _array(self) -> tuple[JsonValue, ...]:
        self._enter()
        items: list[JsonValue] = []
        while not self._take("]"):
            if items and not self._take(","):
                self._fail("a comma or closing bracket is missing")
            self._path.append(len(items))
            items.append(self._value())
            self._path.pop()
        self._depth -= 1
        return tuple(items)

    def _string(self) -> str:
        self._at += 1
        parts: list[str] = []
        while True:
            plain = _PLAIN.match(self._text, self._at)
            if plain is not None:
                parts.append(plain.group())
                self._at = plain.end()
            character = self._next()
            if character == '"':
                self._at += 1
                return "".join(parts)
            if character != "\\":
                self._fail("the string is not closed" if not character else "a string holds a control character")
            parts.append(self._escape())

    def _escape(self) -> str:
        kind = self._text[self._at + 1 : self._at + 2]
        if kind != "u":
            if kind not in _ESCAPES:
                self._fail("an escape is not one of JSON's")
            self._at += 2
            return _ESCAPES[kind]
        unit = self._unit()
        if unit in _HIGH and self._text.startswith("\\u", self._at):
            low = self._unit()
            if low in _LOW:
                return chr(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00))
        if unit in _HIGH or unit in _LOW:
            self._fail("a surrogate is not one of a pair")
        if not unit:
            # PostgreSQL's jsonb cannot hold it.
            self._fail("a string holds U+0000")
        return chr(unit)

    def _unit(self) -> int:
        digits = _HEX.match(self._text, self._at + 2)
        if digits is None:
            self._fail("an escape is not one of JSON's")
        self._at = digits.end()
        return int(digits.group(), 16)

    def _number(self) -> int | float:
        match = _NUMBER.match(self._text, self._at)
        if match is None:
            self._fail("a number is not JSON's")
        if match.end() - self._at > _MAX_NUMBER_CHARACTERS:
            self._fail(f"a number is longer than {_MAX_NUMBER_CHARACTERS} characters")
        whole = match.group(1) is None and match.group(2) is None
        value: int | float = int(match.group()) if whole else float(match.group())
        if not math.isfinite(value) or abs(value) > MAX_INTEGER:
            self._fail("a number is beyond 2^53")
        self._at = match.end()
        return value

    def _word(self) -> JsonValue:
        word, value = next((pair for pair in _WORDS if self._text.startswith(pair[0], self._at)), ("", None))
        if not word:
            self._fail("this is not JSON")
        self._at += len(word)
        return value
