"""Values that an invocation was given, taken out of what is kept about it: log lines, messages of traps and of guest errors.

Best effort, and no more (T33): a guest that means to can always write a value in another way (reversed, split, encrypted). What this stops
is the accident: a header or an address with the value in it that ends in a log, which many may read.

Recognised: the value itself, each line of a value of several lines, their JSON and percent encodings, and base64 at any alignment; the
beginning of one of these at the end of a text that was cut. Shorter pieces than six characters are left: a log in which every "1" is hidden
says nothing any more.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, quote_plus

LEAST_CHARACTERS: Final = 6
HIDDEN: Final = "[redacted]"
_MAX_LINES: Final = 64
"""Of one value that are looked for one by one; the value as a whole always is."""
_MAX_FORMS: Final = 4_096


class RevealedValues:
    """The values that one invocation was given so far. Costs nothing until there is one."""

    __slots__ = ("_forms", "_values")

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._forms: tuple[str, ...] | None = None

    def add(self, value: str) -> None:
        """Remember that the invocation was given `value`."""
        if value not in self._values:
            self._values.add(value)
            self._forms = None

    def hide(self, text: str) -> str:
        """Return `text` without the values."""
        if not self._values:
            return text
        if self._forms is None:
            self._forms = _forms_of(self._values)
        for form in self._forms:
            if form in text:
                text = text.replace(form, HIDDEN)
        for form in self._forms:
            text = _without_beginning(text, form)
        return text


def _without_beginning(text: str, form: str) -> str:
    """Take the beginning of `form` off the end of `text`."""
    start = max(0, len(text) - len(form) + 1)
    head = form[:LEAST_CHARACTERS]
    while (found := text.find(head, start)) >= 0:
        if form.startswith(text[found:]):
            return text[:found] + HIDDEN
        start = found + 1
    return text


def _forms_of(values: set[str]) -> tuple[str, ...]:
    """Return what is looked for, the longest first, so that no shorter one leaves a rest of a longer one."""
    forms: set[str] = set()
    for value in sorted(values):
        for piece in dict.fromkeys((value, *value.splitlines()[:_MAX_LINES])):
            if len(piece) >= LEAST_CHARACTERS and len(forms) < _MAX_FORMS:
                forms.update(form for form in written_forms(piece) if len(form) >= LEAST_CHARACTERS)
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def written_forms(piece: str) -> Iterator[str]:
    """Yield the ways in which programs write a value by accident: itself, JSON, percent encodings, base64 at any alignment."""
    yield piece
    yield json.dumps(piece)[1:-1]
    yield json.dumps(piece, ensure_ascii=False)[1:-1]
    yield quote(piece, safe="")
    yield quote(piece)
    yield quote_plus(piece)
    data = piece.encode()
    for offset in range(3):
        # With one or two bytes before it a value reads differently in base64; what also holds bits of its neighbours is left off.
        encoded = b64encode(bytes(offset) + data).decode().rstrip("=")
        sure = encoded[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
        yield sure
        yield sure.replace("+", "-").replace("/", "_")
