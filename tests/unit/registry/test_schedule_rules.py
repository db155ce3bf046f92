"""Each rule of a schedule alone: what is accepted, what is refused, and that no expression takes long."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.domain.records import Endpoint
from registry.services.schedule_rules import (
    RuleError,
    Selector,
    checked_cron,
    checked_name,
    checked_payload,
    checked_timezone,
    choose_endpoint,
    is_schedulable,
    read_selector,
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("*/5 * * * *", "*/5 * * * *"),
        ("  0  3 * *   1-5 ", "0 3 * * 1-5"),
        ("0 0 29 2 *", "0 0 29 2 *"),
        ("0 0 31 1,2 *", "0 0 31 1,2 *"),
        ("5/10 22-2 * * *", "5/10 22-2 * * *"),
        ("0 0 * * 7", "0 0 * * 7"),
        ("00 09 1,15 * *", "00 09 1,15 * *"),
        # Two minutes apart over midnight, on days that never follow each other.
        ("0,58 0,23 1 * *", "0,58 0,23 1 * *"),
        ("0,58 0,23 * * 1,5", "0,58 0,23 * * 1,5"),
        ("0,58 0,23 * * 0,2,4", "0,58 0,23 * * 0,2,4"),
        ("0,58 0,23 28 2 *", "0,58 0,23 28 2 *"),
    ],
)
def test_cron__possible__is_kept(text: str, kept: str) -> None:
    assert checked_cron(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        # More often than every five minutes, in plain words and in disguise.
        "* * * * *",
        "*/4 * * * *",
        "0,1,2,3 * * * *",
        "0-59 * * * *",
        "* 1 * * *",
        "0,3 0 1 1 *",
        "57 0-23 * * *,*/1 * * * *",
        "0,56 * * * *",
        "0,58 0,23 * * *",
        "0,58 0,23 1,31 1,2 *",
        "0,58 0,23 28,29,1 2,3 *",
        "0,58 0,23 * * 6,0",
        "0,58 0,23 * * 5-1",
        "0-0/1,1 5 * * *",
        "1-1 * * * *",
        # Never.
        "0 0 31 2 *",
        "0 0 30 2 *",
        "0 0 31 4,6,9,11,2 *",
        # Not an expression, or one that others understand.
        "",
        " ",
        "* * * *",
        "* * * * * *",
        "0 0 1 1 * 2030",
        "@hourly",
        "@reboot",
        "0 0 L * *",
        "0 0 * * 5#2",
        "0 0 ? * *",
        "0 0 * JAN *",
        "0 0 * * MON",
        "R R * * *",
        "H H * * *",
        "0\t0 * * *",
        "0\n0 * * *",
        "0 0 * * *\n",
        "0 0 * * *\0",
        "\u0660 0 * * *",
        "-1 0 * * *",
        "1- 0 * * *",
        "1,, 0 * * *",
        ",1 0 * * *",
        "*/0 0 * * *",
        "0/0 0 * * *",
        "0--5 0 * * *",
        "*-5 0 * * *",
        "60 0 * * *",
        "0 24 * * *",
        "0 0 0 * *",
        "0 0 32 * *",
        "0 0 * 13 *",
        "0 0 * 0 *",
        "0 0 * * 8",
        "0-99999999999 0 * * *",
        "1000000000000/1 0 * * *",
        # Both kinds of day.
        "0 0 1 * 1",
        "0 0 */2 * 1",
        "0 0 1-31 * 0-6",
        # Long.
        "0 0 " + ",".join(["1"] * 70) + " * *",
        "0" * 129,
        " " * 100 + "0 0 * * *" + " " * 100,
    ],
)
def test_cron__not_possible__is_refused_in_words(text: str) -> None:
    with pytest.raises(RuleError) as caught:
        checked_cron(text)
    assert str(caught.value)
    assert str(caught.value).isascii()


def test_cron__at_and_over_its_length() -> None:
    longest = "0 0 " + ",".join(["11"] * 39) + ",1 * *"
    assert len(longest + "  ") == 128
    assert checked_cron(longest + "  ") == longest
    with pytest.raises(RuleError, match="128"):
        checked_cron(longest + "   ")


@pytest.mark.parametrize(
    "text", [",".join(["*/1"] * 29) + " * * * *", "0 0 31 2 *", "0 0 " + ",".join(["30-31/1"] * 13) + " 2 *", "*" * 128, "0-" * 64]
)
def test_cron__made_to_take_long__is_judged_without_looking_for_its_times(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(*_args: object, **_kwargs: object) -> None:
        pytest.fail("a time was looked for: through decades, where there is none")

    monkeypatch.setattr(croniter, "get_next", searched)
    monkeypatch.setattr(croniter, "_calc", searched)
    with pytest.raises(RuleError):
        checked_cron(text)


_ITEMS = st.one_of(
    st.just("*"),
    st.integers(1, 30).map(lambda step: f"*/{step}"),
    st.lists(st.integers(0, 59), min_size=1, max_size=4).map(lambda numbers: ",".join(map(str, numbers))),
    st.tuples(st.integers(0, 59), st.integers(0, 59), st.integers(1, 9)).map(lambda parts: f"{parts[0]}-{parts[1]}/{parts[2]}"),
)
_HOURS = st.sampled_from(["*", "0", "0,23", "*/6", "22-2", "1-3"])
_DAYS = st.sampled_from(["*", "1", "1,31", "28,29,1", "30", "31", "*/2", "15-17"])
_MONTHS = st.sampled_from(["*", "2", "2,3", "1,2", "4", "12,1", "*/5"])
_WEEKDAYS = st.sampled_from(["*", "0", "7", "5,6", "1,4", "6,0"])
_YEARS = 4


@settings(max_examples=120, deadline=None)
@given(minute=_ITEMS, hour=_HOURS, day=_DAYS, month=_MONTHS, weekday=_WEEKDAYS)
def test_cron__any_expression__is_judged_as_it_fires(minute: str, hour: str, day: str, month: str, weekday: str) -> None:
    """The rule looks at a calendar; this looks at the firings themselves, as whoever runs schedules will."""
    text = f"{minute} {hour} {day} {month} {weekday}"
    if not croniter.is_valid(text) or (day != "*" and weekday != "*"):
        with pytest.raises(RuleError):
            checked_cron(text)
        return
    begin = datetime(2027, 12, 20, tzinfo=UTC)  # Before a new year, and before a leap day.
    end = begin.replace(year=begin.year + _YEARS)
    times = croniter(text, begin, ret_type=datetime, max_years_between_matches=_YEARS + 1).all_next(datetime)
    closest, fired, before = 10_000.0, 0, None
    for moment in times:
        fired += 1
        if before is not None:
            closest = min(closest, (moment - before).total_seconds() / 60)
        # Enough to have seen every pattern of the day, and where days are few, every pattern of the year.
        if closest < 5 or moment > end or fired > 600:
            break
        before = moment
    if fired == 0:
        with pytest.raises(RuleError, match="never"):
            checked_cron(text)
    elif closest < 5:
        with pytest.raises(RuleError, match="more often"):
            checked_cron(text)
    else:
        assert checked_cron(text) == text


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "Asia/Kathmandu", "GMT"])
def test_timezone__of_the_database__is_kept(name: str) -> None:
    assert checked_timezone(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "utc",
        "europe/berlin",
        "Europe/Atlantis",
        "Europe",
        "Europe/",
        "/etc/localtime",
        "../../etc/passwd",
        "../../../../etc/localtime",
        "Europe/../Europe/Berlin",
        "Europe//Berlin",
        "zone.tab",
        "tzdata.zi",
        "__init__.py",
        "localtime",
        "posixrules",
        "Factory",
        "+02:00",
        "UTC+2",
        "EST5EDT,M3.2.0,M11.1.0",
        "Europe/Berlin\0",
        "Europe/Berlin\n",
        " UTC",
        "UTС",  # noqa: RUF001 - the last letter is Cyrillic
        "\ud800",
        "A" * 65,
        "A" * 100_000,
    ],
)
def test_timezone__anything_else__is_refused_without_reading_a_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked_timezone("UTC")

    def opened(*_args: object, **_kwargs: object) -> None:
        pytest.fail("something was opened")

    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr("io.open", opened)
    with pytest.raises(RuleError, match="IANA"):
        checked_timezone(name)


@pytest.mark.parametrize("name", ["n", "n" * 128, "Nightly report", "\U0001f600", "é", "../x", "' or 1=1 --"])
def test_name__showable__is_kept(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["n" * 129, "a\0", "a\nb", "\x1b[2J", "\u202eevil", "zero\u200bwidth", "\ud800"])
def test_name__long_or_not_showable__is_refused(name: str) -> None:
    with pytest.raises(RuleError):
        checked_name(name)


def test_name_and_payload__empty__are_none() -> None:
    assert checked_name("") is None
    assert checked_payload("") is None


@pytest.mark.parametrize(
    "payload",
    ["{}", "[]", ' {"a": [1, 2.5e3, null, "\\u0000 \\ud800"]}\n', "[" * 100 + "]" * 100, '["' + "é" * 99_996 + '"]', '{"a":1,"a":2}'],
)
def test_payload__object_or_array__is_kept_to_the_letter(payload: str) -> None:
    assert checked_payload(payload) == payload


@pytest.mark.parametrize(
    "payload",
    [
        " ",
        "null",
        "1",
        '"text"',
        "true",
        "{",
        "{'a': 1}",
        "[1,]",
        "[NaN]",
        "[Infinity]",
        "[-Infinity]",
        "[1] [2]",
        "\ufeff[]",
        '["a\nb"]',
        '["\0"]',
        '["\ud800"]',
        "[" * 100_000,
        "[" * 50_000 + "]" * 50_000,
        '{"a":' * 20_000 + "1" + "}" * 20_000,
        "[" + "9" * 99_998 + "]",
        '["' + "x" * 99_997 + '"]',
    ],
)
def test_payload__anything_else__is_refused(payload: str) -> None:
    with pytest.raises(RuleError):
        checked_payload(payload)


@pytest.mark.parametrize(
    ("text", "method", "path"),
    [
        ("/a", None, "/a"),
        ("GET /a/b", "GET", "/a/b"),
        ("post /a", "POST", "/a"),
        ("Get  /", "GET", "/"),
        ("POST /a~b-c.d", "POST", "/a~b-c.d"),
    ],
)
def test_selector__possible__is_read(text: str, method: str | None, path: str) -> None:
    assert read_selector(text) == Selector(method, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GET",
        "a",
        "GET a",
        " /a",
        "/a ",
        "/a b",
        "GET /a\n",
        "/a\0",
        "PUT /a",
        "DELETE /a",
        "HEAD /a",
        "PO\u017fT /a",
        "GET\t/a",
        "/é",
        "/" * 5_000,
    ],
)
def test_selector__anything_else__is_refused(text: str) -> None:
    with pytest.raises(RuleError):
        read_selector(text)


def endpoint(method: str = "POST", path: str = "/run", *, roles: tuple[str, ...] = (), schedulable: bool = True) -> Endpoint:
    return Endpoint(method=method, path=path, roles=roles, schedulable=schedulable)


@pytest.mark.parametrize(
    ("one", "possible"),
    [
        (endpoint(), True),
        (endpoint("GET", "/"), True),
        (endpoint("PUT"), False),
        (endpoint("DELETE"), False),
        (endpoint(path="/run/:id"), False),
        (endpoint(path="/:id/run"), False),
        (endpoint(path="/run:id"), True),
        # Nobody stands behind a scheduled call, so nobody has the role (T5).
        (endpoint(roles=("admin",)), False),
        (endpoint(schedulable=False), False),
    ],
)
def test_endpoint__schedulable_or_not(one: Endpoint, possible: bool) -> None:
    assert is_schedulable(one) is possible
    if possible:
        assert choose_endpoint(Selector(one.method, one.path), [endpoint(path="/other"), one]) == one
    else:
        with pytest.raises(RuleError, match="cannot be scheduled"):
            choose_endpoint(Selector(None, one.path), [one])


def test_endpoint__not_declared_or_not_clear__is_refused() -> None:
    both = [endpoint("GET"), endpoint("POST")]
    with pytest.raises(RuleError, match="declares no such"):
        choose_endpoint(Selector("GET", "/run"), [endpoint("POST")])
    with pytest.raises(RuleError, match="name the method"):
        choose_endpoint(Selector(None, "/run"), both)
    assert choose_endpoint(Selector("POST", "/run"), both).method == "POST"
    assert choose_endpoint(Selector(None, "/run"), [endpoint("GET", schedulable=False), endpoint("POST")]).method == "POST"
