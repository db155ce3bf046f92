"""What a schedule may say: each rule alone, without a database.

Attacks these stop: an expression that fires every minute in disguise (`0,1,2,3 * * * *`, `58 23 * * *` with `0 0 * * *` in one), or that
never fires and makes whoever looks for its next time search for centuries (31 February); one that takes long to read; a time zone that is a
path of the machine (`../../etc/passwd`); a payload that ends its reader.

    RuleError               a value is refused; the text says what is wrong and holds nothing foreign
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Final, NoReturn

from registry.bundles.text import is_unshowable
from registry.domain.paths import MAX_PATH_CHARACTERS
from registry.domain.records import Endpoint


@contextmanager
def _without_asking_a_program() -> Iterator[None]:
    """Answer `platform.architecture()` with nothing, which by itself runs the program `file` on the interpreter.

    SECURITY: a service starts no program that it does not know. croniter asks while it is imported, and goes by the size of a pointer too.
    """
    asked = platform.architecture
    platform.architecture = lambda *_: ("", "")
    try:
        yield
    finally:
        platform.architecture = asked


with _without_asking_a_program():
    from croniter import CroniterError, croniter

MAX_CRON_CHARACTERS: Final = 128
MAX_TIMEZONE_CHARACTERS: Final = 64
MAX_NAME_CHARACTERS: Final = 128
MAX_PAYLOAD_CHARACTERS: Final = 100_000
MIN_INTERVAL_MINUTES: Final = 5
METHODS: Final = frozenset({"GET", "POST"})

_FIELDS: Final = 5
_DAY_OF_MONTH, _DAY_OF_WEEK = 2, 4
_DAY_MINUTES: Final = 24 * 60
_ITEM: Final = r"(?:\*|[0-9]{1,2}(?:-[0-9]{1,2})?)(?:/[0-9]{1,2})?"
_FIELD: Final = re.compile(rf"{_ITEM}(?:,{_ITEM})*\Z")
"""Two digits at most: no number can ask for a long list."""
_SELECTOR: Final = re.compile(r"(?:([A-Za-z]{1,16}) +)?(/[!-~]*)\Z")
_CALENDAR: Final = tuple(date(2024, 1, 1) + timedelta(days=day) for day in range(4 * 365 + 1))
"""Four years with one leap day: every end of a month, before every first, that there is."""


class RuleError(ValueError):
    """A value is refused. The text is a sentence without capital and stop, for whoever gave the value."""


@dataclass(frozen=True, slots=True)
class Selector:
    """An endpoint as a schedule names it."""

    method: str | None
    """Upper case; None where only the path was given."""
    path: str


def checked_cron(text: str) -> str:
    """Return an expression with one blank between its fields.

    The interval is that of the wall clock. Where a time zone's clock is put forward, two firings may once be closer in true time.

    Raises:
        RuleError: not five fields, unknown characters, out of range, both day of month and day of week, never fires, or fires twice within
            less than five minutes.
    """
    if len(text) > MAX_CRON_CHARACTERS:
        message = f"it has more than {MAX_CRON_CHARACTERS} characters"
        raise RuleError(message)
    fields = [field for field in text.split(" ") if field]
    if len(fields) != _FIELDS:
        message = "it must have exactly five fields: minute, hour, day of month, month, day of week"
        raise RuleError(message)
    if not all(map(_FIELD.match, fields)):
        message = 'its fields are made of numbers, "*", "/", "," and "-"'
        raise RuleError(message)
    if fields[_DAY_OF_MONTH] != "*" and fields[_DAY_OF_WEEK] != "*":
        message = "it may name days of the month or days of the week, not both"
        raise RuleError(message)
    expression = " ".join(fields)
    try:
        # Reads, and computes no time: looking for one may go through decades of days.
        expanded, _ = croniter.expand(expression)
    except CroniterError as exc:
        message = "a field is out of its range"
        raise RuleError(message) from exc
    minutes, hours, days, months, weekdays = map(_numbers, expanded, (range(60), range(24), range(1, 32), range(1, 13), range(7)))
    fires = [_fires(day, days, months, weekdays) for day in _CALENDAR]
    if not any(fires):
        message = "it never fires: no month of it has such a day"
        raise RuleError(message)
    times = sorted(hour * 60 + minute for hour in hours for minute in minutes)
    if _interval(times, fires) < MIN_INTERVAL_MINUTES:
        message = f"it fires more often than every {MIN_INTERVAL_MINUTES} minutes"
        raise RuleError(message)
    return expression


def checked_timezone(text: str) -> str:
    """Return a name of the IANA time zone database.

    Looked up among the names that our own copy of the database lists; no part of it becomes a path.

    Raises:
        RuleError: it is none.
    """
    if len(text) > MAX_TIMEZONE_CHARACTERS or text not in _timezones():
        message = "it is not a time zone of the IANA database, such as Europe/Berlin"
        raise RuleError(message)
    return text


def checked_name(text: str) -> str | None:
    """Return a name; None for "", which is no name.

    Raises:
        RuleError: too long, or holds characters that cannot be shown.
    """
    if len(text) > MAX_NAME_CHARACTERS:
        message = f"it has more than {MAX_NAME_CHARACTERS} characters"
        raise RuleError(message)
    # SECURITY: administrators read names in consoles and terminals (T44).
    if any(map(is_unshowable, text)):
        message = "it holds control or other characters that cannot be shown"
        raise RuleError(message)
    return text or None


def checked_payload(text: str) -> str | None:
    """Return a payload as it is; None for "", which is no payload.

    Raises:
        RuleError: too long, or not the JSON of an object or an array.
    """
    if not text:
        return None
    if len(text) > MAX_PAYLOAD_CHARACTERS:
        message = f"it has more than {MAX_PAYLOAD_CHARACTERS} characters"
        raise RuleError(message)
    try:
        text.encode("utf-8")
        # Only whether it can be read matters; the extension gets its own text back.
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        message = "it is not JSON"
        raise RuleError(message) from exc
    if not isinstance(document, dict | list):
        message = "it must be a JSON object or array"
        raise RuleError(message)
    return text


def read_selector(text: str) -> Selector:
    """Read `[METHOD ]/path`.

    Raises:
        RuleError: it is none, or the method is neither GET nor POST.
    """
    match = _SELECTOR.match(text) if len(text) <= MAX_PATH_CHARACTERS else None
    if match is None:
        message = 'write it as "/path" or "METHOD /path"'
        raise RuleError(message)
    method = match[1].upper() if match[1] else None
    if method is not None and method not in METHODS:
        message = "only endpoints with the method GET or POST can be scheduled"
        raise RuleError(message)
    return Selector(method, match[2])


def choose_endpoint(selector: Selector, endpoints: Iterable[Endpoint]) -> Endpoint:
    """Return the one endpoint that is meant.

    Raises:
        RuleError: the version declares none such, it cannot be scheduled, or two could be meant.
    """
    named = [one for one in endpoints if one.path == selector.path and selector.method in {None, one.method}]
    possible = [one for one in named if is_schedulable(one)]
    if not named:
        message = "the installed version declares no such endpoint"
    elif not possible:
        message = 'the endpoint cannot be scheduled: it needs "schedulable" in the manifest, GET or POST, no parameters and no roles'
    elif len(possible) > 1:
        message = "two endpoints have this path; name the method, too"
    else:
        return possible[0]
    raise RuleError(message)


def is_schedulable(endpoint: Endpoint) -> bool:
    """Tell whether a schedule can call it.

    Nobody stands behind a scheduled call, so an endpoint that asks for roles could only refuse it (T5).
    """
    has_parameters = any(segment.startswith(":") for segment in endpoint.path.split("/"))
    return endpoint.schedulable and endpoint.method in METHODS and not has_parameters and not endpoint.roles


def _numbers(field: Sequence[object], every: range) -> frozenset[int]:
    return frozenset(every) if "*" in field else frozenset(number for number in field if isinstance(number, int))


def _fires(day: date, days: frozenset[int], months: frozenset[int], weekdays: frozenset[int]) -> bool:
    # Cron counts Sunday as 0. One of days and weekdays is always everything.
    return day.month in months and day.day in days and day.isoweekday() % 7 in weekdays


def _interval(times: Sequence[int], fires: Sequence[bool]) -> int:
    """Return the least minutes between two firings, the one over midnight included where a day that fires follows another."""
    within_day = [later - earlier for earlier, later in pairwise(times)]
    over_midnight = times[0] + _DAY_MINUTES - times[-1]
    follows = any(today and tomorrow for today, tomorrow in pairwise(fires))
    return min([*within_day, over_midnight] if follows else within_day, default=_DAY_MINUTES)


@cache
def _timezones() -> frozenset[str]:
    # "Factory" is what a clock says that nobody has set.
    return frozenset(resources.files("tzdata").joinpath("zones").read_text(encoding="utf-8").split()) - {"Factory"}


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is not JSON"
    raise ValueError(message)
