"""The lists of hosts: declared ∩ left by the tenant ∩ the operator's, and what counting relaxes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.egress import COUNT_MODE_MOST, EgressRule, InstallEgress, covers, host_matches
from registry.domain.ids import VersionId
from runnerd.capabilities.egress_policy import EgressCeiling, decide, generation_of
from runnerd.capabilities.urls import parse_url

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
RULES = (
    EgressRule(host="api.example.com", ports=(443, 8443)),
    EgressRule(host="*.example.org", schemes=("https", "http"), ports=(443, 80)),
)
LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("example.com", "example.com", True),
        ("example.com", "a.example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "b.a.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*.example.com", "a.example.com.evil.net", False),
        ("*.0.0.1", "127.0.0.1", False),
        ("*.1", "1.1.1.1", False),
        ("8.8.8.8", "8.8.8.8", True),
    ],
)
def test_pattern(pattern: str, host: str, matches: bool) -> None:
    assert host_matches(pattern, host) is matches


@given(NAME, NAME)
def test_wildcard__means_names_below_and_nothing_else(base: str, host: str) -> None:
    assert host_matches(f"*.{base}", f"{host}.{base}")
    assert not host_matches(f"*.{base}", base)
    assert host_matches(f"*.{base}", host) == host.endswith(f".{base}")


@given(NAME, NAME, st.booleans(), st.booleans(), NAME)
def test_covers__what_a_tenant_may_name_reaches_nothing_undeclared(first: str, second: str, wide: bool, narrow: bool, host: str) -> None:
    declared = EgressRule(host=f"*.{first}" if wide else first)
    named = f"*.{second}.{first}" if narrow else f"{second}.{first}"
    for wanted in (named, first, f"*.{first}", second):
        if covers((declared,), wanted):
            for reached in (host, f"{host}.{first}", f"{host}.{named.removeprefix('*.')}", first, named):
                if host_matches(wanted, reached):
                    assert host_matches(declared.host, reached)


@pytest.mark.parametrize(
    ("url", "hosts", "why"),
    [
        ("https://api.example.com/", None, None),
        ("https://api.example.com:8443/", None, None),
        ("http://a.example.org/", None, None),
        ("https://api.example.com/", ("api.example.com",), None),
        ("https://a.example.org/", ("a.example.org",), None),
        ("https://b.example.org/", ("a.example.org",), "host_not_granted"),
        ("https://api.example.com/", (), "host_not_granted"),
        ("http://api.example.com/", None, "scheme_or_port_not_declared"),
        ("https://api.example.com:80/", None, "scheme_or_port_not_declared"),
        ("https://example.org/", None, "host_not_declared"),
        ("https://evil.example.net/", None, "host_not_declared"),
        ("https://8.8.8.8/", None, "not_allowed_by_operator"),
    ],
)
def test_decide__says_why_and_what_would_change_it(url: str, hosts: tuple[str, ...] | None, why: str | None) -> None:
    ceiling = EgressCeiling(ports=(443, 8443, 80), schemes=("https", "http") if "example.org" in url else ("https",))
    decision = decide(parse_url(url), InstallEgress(rules=RULES, hosts=hosts), ceiling, NOW)
    assert decision.allowed is (why is None)
    if why is not None:
        assert decision.denial is not None
        assert (decision.denial["capability"], decision.denial["why"]) == ("cap:http.fetch", why)
        assert parse_url(url).host in decision.denial["change"]


@pytest.mark.parametrize(
    ("until", "counts"),
    [
        (None, False),
        (NOW, False),
        (NOW - timedelta(seconds=1), False),
        (NOW + timedelta(seconds=1), True),
        (NOW + COUNT_MODE_MOST, True),
        (NOW + COUNT_MODE_MOST + timedelta(hours=1), False),
    ],
)
def test_counting__has_an_end_and_a_longest_time(until: datetime | None, counts: bool) -> None:
    egress = InstallEgress(count_until=until)
    decision = decide(parse_url("https://anywhere.example/"), egress, EgressCeiling(), NOW)
    assert (decision.allowed, decision.result) == ((True, "counted") if counts else (False, "not_on_list"))
    assert decision.denial is not None
    assert decision.denial["why"] == "host_not_declared"


@pytest.mark.parametrize("hosts", [(), ("other.example",)])
def test_ceiling__holds_for_everybody(hosts: tuple[str, ...]) -> None:
    egress = InstallEgress(rules=RULES, count_until=NOW + timedelta(days=1))
    assert not decide(parse_url("https://api.example.com/"), egress, EgressCeiling(hosts=hosts), NOW).allowed


def test_nothing_declared__nothing_reached() -> None:
    assert not decide(parse_url("https://api.example.com/"), InstallEgress(), EgressCeiling(), NOW).allowed
    assert not decide(parse_url("https://api.example.com/"), InstallEgress(hosts=("api.example.com",)), EgressCeiling(), NOW).allowed


def test_generation__differs_with_everything_that_decides() -> None:
    version, other = VersionId("0197a000-0000-7000-8000-000000000001"), VersionId("0197a000-0000-7000-8000-000000000002")
    states = [
        (InstallEgress(rules=RULES), version, EgressCeiling()),
        (InstallEgress(rules=RULES), other, EgressCeiling()),
        (InstallEgress(rules=RULES[:1]), version, EgressCeiling()),
        (InstallEgress(rules=RULES, hosts=()), version, EgressCeiling()),
        (InstallEgress(rules=RULES, count_until=NOW), version, EgressCeiling()),
        (InstallEgress(rules=RULES), version, EgressCeiling(ports=(80,))),
    ]
    assert len({generation_of(*state) for state in states}) == len(states)
    assert generation_of(*states[0]) == generation_of(InstallEgress(rules=RULES), version, EgressCeiling())
