"""Values that an invocation was given, taken out of what is kept about it: log lines, messages of traps and of guest errors.

Best effort, and no more (T33): a guest that means to can always write a value in another way (reversed, split, encrypted). What this stops
is the accident: a header or an address with the value in it that ends in a log, which many may read.

Recognised: the value itself, each line of a value of several lines, their JSON and percent encodings, and base64 at any alignment; the
beginning of one of these at the end of a text that was cut. Shorter pieces than six characters are left: a log in which every "1" is hidden
says nothing any more.

All of this runs between the calls of other tenants, so it has bounds of its own: beyond `MOST_SECONDS` of the processor for one invocation
nothing is looked at any more, and everything is hidden.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import quote, quote_plus

LEAST_CHARACTERS: Final = 6
HIDDEN: Final = "[redacted]"
_MAX_LINES: Final = 64
"""Of one value that are looked for one by one; the value as a whole always is."""
_MAX_FORMS: Final = 4_096
_MAX_BEGINNINGS: Final = 64
"""Places at which a cut value may begin, of one form in one text, that are looked at."""
MOST_SECONDS: Final = 0.5
"""Of the processor, for one invocation: a hundred times what keys and tokens in a full log take."""


class RevealedValues:
    """The values that one invocation was given so far. Costs nothing until there is one."""

    __slots__ = ("_forms", "_new", "_seconds_left", "_values")

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._new: list[str] = []
        self._forms: tuple[str, ...] = ()
        self._seconds_left = MOST_SECONDS

    def add(self, value: str) -> None:
        """Remember that the invocation was given `value`."""
        if value not in self._values:
            self._values.add(value)
            self._new.append(value)

    def hide(self, text: str) -> str:
        """Return `text` without the values."""
        if not self._values:
            return text
        # SECURITY: whoever chooses the values and what is logged also chooses how much work it is to find the ones in the other.
        if self._seconds_left <= 0:
            return HIDDEN
        began = time.thread_time()
        if self._new:
            self._forms = _longest_first({*self._forms}, self._new)
            self._new = []
        for form in self._forms:
            if form in text:
                text = text.replace(form, HIDDEN)
        for form in self._forms:
            text = _without_beginning(text, form)
        self._seconds_left -= time.thread_time() - began
        return text


def _without_beginning(text: str, form: str) -> str:
    """Take the beginning of `form` off the end of `text`."""
    start = max(0, len(text) - len(form) + 1)
    head = form[:LEAST_CHARACTERS]
    found = first = text.find(head, start)
    for _ in range(_MAX_BEGINNINGS):
        if found < 0:
            return text
        if form.startswith(text[found:]):
            return text[:found] + HIDDEN
        found = text.find(head, found + 1)
    # So many are nobody's accident; no more are compared, and nothing is left of what they may be.
    return text if found < 0 else text[:first] + HIDDEN


def _longest_first(forms: set[str], values: Sequence[str]) -> tuple[str, ...]:
    """Return what is looked for, with that of more values, the longest first, so that no shorter one leaves a rest of a longer one."""
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
