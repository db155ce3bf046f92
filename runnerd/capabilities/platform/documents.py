"""Reads the JSON of the host platform: a value of exactly the type that is asked for, or a refusal. Nothing is coerced.

Attack it stops: an answer of the wrong shape, size or depth that becomes an exception, or a value that the guest's types cannot hold.

    DocumentError           the platform's JSON is not what its contract says
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, NoReturn

from runnerd.capabilities.shapes import TEXT_BYTES

_U32_MAX: Final = (1 << 32) - 1


class DocumentError(Exception):
    """An answer is not what the contract says. The text names a field of the contract and repeats nothing of the answer."""


def parse_object(body: bytes) -> Document:
    """Parse a JSON object of RFC 8259: no NaN, no infinity.

    Raises:
        DocumentError: it is not one, or nested so deeply that nobody needs it.
    """
    try:
        # ValueError: also of undecodable bytes, and of integers with thousands of digits.
        content = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        message = "the answer is not JSON"
        raise DocumentError(message) from error
    return Document(content)


def _no_constant(name: str) -> NoReturn:
    message = f"{name} is not JSON"
    raise ValueError(message)


class Document:
    """An object of the platform's, whose fields are asked for by their camelCase names; snake_case is accepted as well.

    Raises:
        DocumentError: by every method: a field that must be there is not, or has another type.
    """

    def __init__(self, content: object) -> None:
        if not isinstance(content, dict):
            message = "not an object where one must be"
            raise DocumentError(message)
        self._content: dict[str, Any] = content

    def __contains__(self, name: str) -> bool:
        return self._raw(name) is not None

    def text(self, name: str) -> str:
        """Return a string that must be there."""
        value = self.optional_text(name)
        if value is None:
            _wrong(name)
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a string, or None where it is absent or null."""
        value = self._raw(name)
        if value is None:
            return None
        if not isinstance(value, str):
            _wrong(name)
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            # A lone surrogate, which JSON can spell and UTF-8 cannot.
            _wrong(name)
        if size > TEXT_BYTES:
            _wrong(name)
        return value

    def boolean(self, name: str) -> bool:
        """Return true or false, which must be there."""
        value = self._raw(name)
        if not isinstance(value, bool):
            _wrong(name)
        return value

    def u32(self, name: str) -> int:
        """Return a whole number of 32 bits, which must be there."""
        value = self._raw(name)
        if type(value) is not int or not 0 <= value <= _U32_MAX:
            _wrong(name)
        return value

    def number(self, name: str) -> float:
        """Return a number that must be there."""
        value = self.optional_number(name)
        if value is None:
            _wrong(name)
        return value

    def optional_number(self, name: str) -> float | None:
        """Return a finite number, or None where it is absent or null."""
        value = self._raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            _wrong(name)
        try:
            number = float(value)
        except OverflowError:
            _wrong(name)
        if not math.isfinite(number):
            _wrong(name)
        return number

    def one_of(self, name: str, cases: Sequence[str]) -> str:
        """Return a string that must be there and be one of `cases`."""
        value = self.text(name)
        if value not in cases:
            _wrong(name)
        return value

    def nested(self, name: str) -> Document:
        """Return an object that must be there."""
        return Document(self._raw(name))

    def optional_nested(self, name: str) -> Document | None:
        """Return an object; None where the field is null. The field itself must be there: an answer without it is another answer."""
        if name not in self._content and _snake(name) not in self._content:
            _wrong(name)
        value = self._raw(name)
        return None if value is None else Document(value)

    def nested_list(self, name: str, *, most: int) -> list[Document]:
        """Return a list of objects that must be there and have at most `most` items."""
        value = self._raw(name)
        if not isinstance(value, list) or len(value) > most:
            _wrong(name)
        return [Document(item) for item in value]

    def mapping(self, name: str) -> Mapping[str, object]:
        """Return an object as it is; an empty one where it is absent or something else."""
        value = self._raw(name)
        return value if isinstance(value, dict) else {}

    def _raw(self, name: str) -> Any:
        return self._content[name] if name in self._content else self._content.get(_snake(name))


@cache
def _snake(name: str) -> str:
    # Names are those of the contract; the cache has one entry for each.
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _wrong(name: str) -> NoReturn:
    message = f"{name} is absent or not what it must be"
    raise DocumentError(message)
