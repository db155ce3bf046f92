"""What an answer's head may be, checked in the child before it is passed on and in the daemon before it is believed.

The attack it stops: a status, or a header with a control character, that a server sends to trip whoever reads it next: the daemon, which
ends a child that sends nonsense, or the guest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from registry.domain.headers import HOP_BY_HOP
from runnerd.capabilities.catalog import HEADERS

MAX_HEAD_BYTES: Final = 64 * 1024
"""Names and values of the headers together, in UTF-8."""
_MIN_STATUS, _MAX_STATUS = 200, 599
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+\Z")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*\Z")

Headers = tuple[tuple[str, str], ...]


class AnswerError(ValueError):
    """This is no answer; the text says why."""


def head_size(headers: Headers) -> int:
    """Return the bytes that count for headers."""
    return sum(len(name) + len(value.encode()) for name, value in headers)


def check_head(status: object, headers: Iterable[object]) -> tuple[int, Headers]:
    """Return status and headers.

    Raises:
        AnswerError: they are none that a guest gets.
    """
    if type(status) is not int or not _MIN_STATUS <= status <= _MAX_STATUS:
        message = "no status between 200 and 599"
        raise AnswerError(message)
    checked = tuple(map(_header, headers))
    if len(checked) > HEADERS.max_items or head_size(checked) > MAX_HEAD_BYTES:
        message = "too many headers"
        raise AnswerError(message)
    return status, checked


def _header(pair: object) -> tuple[str, str]:
    match pair:
        case [str(name), str(value)] if _NAME.match(name) and _VALUE.match(value) and name not in HOP_BY_HOP:
            return name, value
        case _:
            message = "a header that is none"
            raise AnswerError(message)
