"""Secrets bound to a host: put in at one place only, taken out of what comes back as far as that goes (T33)."""

from __future__ import annotations

import gzip
import html
import json
import logging
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.egress import EgressRule, InstallEgress, SecretBinding
from registry.domain.limits import MIB
from runnerd.capabilities.bound_secrets import MOST_CHARACTERS, scrub
from runnerd.capabilities.catalog import BY_NAME
from runnerd.capabilities.egress_policy import EgressCeiling
from runnerd.capabilities.grants import REQUEST_BYTES, InvocationGrant
from runnerd.capabilities.http import FetchLimits, http_handlers
from runnerd.capabilities.outgoing import EgressError, Failure, IncomingResponse, OutgoingRequest
from runnerd.capabilities.redaction import HIDDEN as HIDDEN_TEXT
from runnerd.capabilities.results import HostResult
from runnerd.capabilities.secrets import SecretCase, SecretRefusalError
from runnerd.telemetry.metrics import Metrics
from tests.fakes.capabilities import grant_of, make_broker

FETCH = BY_NAME["alga:extension/http", "fetch"]
HIDDEN = HIDDEN_TEXT.encode()
VALUE = 'sk-live/"8f+3a<9c>7e&51'
P = "{{secret:api_key}}"
RULES = (
    EgressRule(host="api.example.com", ports=(443, 8443), schemes=("https", "http")),
    EgressRule(host="*.example.com", ports=(443,)),
)
EGRESS = InstallEgress(rules=RULES, secrets=(SecretBinding(secret="api_key", header="authorization", host="api.example.com"),))
CEILING = EgressCeiling(ports=(443, 8443, 80), schemes=("https", "http"))


class Safe:
    def __init__(self, value: str | Exception = VALUE) -> None:
        self.value = value
        self.opened: list[tuple[str, str]] = []

    async def reveal(self, grant: InvocationGrant, name: str) -> str:
        self.opened.append((grant.install_id, name))
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Echo:
    """A server that answers with something made of what it was sent."""

    def __init__(self, make: Callable[[OutgoingRequest], IncomingResponse] | None = None) -> None:
        self.sent: list[OutgoingRequest] = []
        self.make = make

    async def fetch(self, request: OutgoingRequest) -> IncomingResponse:
        self.sent.append(request)
        return self.make(request) if self.make is not None else IncomingResponse(status=200, headers=(), body=b"")


async def fetch(
    server: Echo, safe: Safe | None, url: str = "https://api.example.com/", *, egress: InstallEgress = EGRESS, **request: Any
) -> HostResult:
    handlers = http_handlers(server, ceiling=CEILING, limits=FetchLimits(), metrics=Metrics(), secrets=safe)
    headers = [{"name": name, "value": value} for name, value in request.pop("headers", ())]
    arguments = {"method": "GET", "url": url, "headers": headers, "body": None, **request}
    return await make_broker(handlers).call(grant_of("http.fetch", egress=egress), FETCH, (arguments,))


async def test_bound_header__has_the_value_once_it_leaves() -> None:
    server, safe = Echo(), Safe()
    assert (await fetch(server, safe, headers=[("Authorization", f"Bearer {P}"), ("accept-encoding", "gzip")])).error is None
    assert dict(server.sent[0].headers) == {"authorization": f"Bearer {VALUE}", "accept-encoding": "identity"}
    assert len(safe.opened) == 1


@pytest.mark.parametrize(
    ("url", "request_"),
    [
        (f"https://api.example.com/{P}", {}),
        (f"https://api.example.com/?key={P}", {}),
        ("https://api.example.com/", {"method": "POST", "body": P.encode()}),
        ("https://api.example.com/", {"headers": [("x-authorization", P)]}),
        ("https://api.example.com/", {"headers": [("authorization", "{{secret:other}}")]}),
        ("https://api.example.com/", {"headers": [("authorization", "{{ secret:api_key }}")]}),
        ("https://api.example.com/", {"headers": [("authorization", "{{SECRET:API_KEY}}")]}),
        ("https://api.example.com:8443/", {"headers": [("authorization", P)]}),
        ("http://api.example.com:443/", {"headers": [("authorization", P)]}),
        ("https://other.example.com/", {"headers": [("authorization", P)]}),
        ("https://x.api.example.com/", {"headers": [("authorization", P)]}),
    ],
)
async def test_placeholder__anywhere_else__is_sent_as_it_was_written(url: str, request_: dict[str, Any]) -> None:
    server, safe = Echo(), Safe()
    assert (await fetch(server, safe, url, **request_)).error is None
    assert not safe.opened
    assert VALUE not in repr(server.sent)


async def test_placeholder__for_a_bound_host_that_no_manifest_declares__stays_in_count_mode_too() -> None:
    """Whoever took over the gateway writes bindings, and dates for `count` mode; manifests are signed."""
    binding = SecretBinding(secret="api_key", header="authorization", host="evil.example")
    egress = InstallEgress(rules=RULES, count_until=datetime.now(UTC) + timedelta(days=1), secrets=(binding,))
    server, safe = Echo(), Safe()
    assert (await fetch(server, safe, "https://evil.example/", egress=egress, headers=[("authorization", P)])).error is None
    assert dict(server.sent[0].headers)["authorization"] == P
    assert not safe.opened


async def test_placeholder__of_another_header_beside_the_bound_one__stays() -> None:
    server = Echo()
    await fetch(server, Safe(), headers=[("authorization", P), ("x-copy", P)])
    assert dict(server.sent[0].headers)["x-copy"] == P


@pytest.mark.parametrize(
    "value",
    [
        SecretRefusalError(SecretCase.EXPIRED, "hunter2"),
        "short",
        "",
        "x" * 4_097,
        "line\r\nx-evil: 1",
        "nul\0nul-nul",
        "snow\u2603manman",
        " padded-value",
    ],
)
async def test_value__that_cannot_be_used__stops_the_request(value: str | Exception) -> None:
    server = Echo()
    result = await fetch(server, Safe(value), headers=[("authorization", P)])
    assert result.error == "not-allowed"
    assert result.denial is not None
    assert result.denial["why"] == "secret_unusable"
    assert not server.sent
    assert "hunter2" not in str(result)


async def test_runner_without_secrets__stops_the_request() -> None:
    server = Echo()
    assert (await fetch(server, None, headers=[("authorization", P)])).error == "not-allowed"
    assert not server.sent


BEARER = f"Bearer {VALUE}"
TOLD: dict[str, tuple[bytes, bool]] = {
    "as it is": (BEARER.encode(), True),
    "base64": (b64encode(VALUE.encode()), True),
    "base64 of the header": (b64encode(BEARER.encode()), True),
    "base64, one byte further": (b64encode(b"x" + BEARER.encode()), True),
    "base64 for URLs": (urlsafe_b64encode(BEARER.encode()), True),
    "percent": (quote(BEARER, safe="").encode(), True),
    "percent, lower case": (quote(VALUE, safe="").lower().encode(), True),
    "JSON": (json.dumps({"a": BEARER}).encode(), True),
    "JSON as PHP writes it": (json.dumps(BEARER).replace("/", "\\/").encode(), True),
    "HTML": (html.escape(BEARER).encode(), True),
    "hex": (VALUE.encode().hex().encode(), True),
    # What a host can always do: the reason why one that shows what it is sent must not be bound.
    "reversed": (VALUE[::-1].encode(), False),
    "in upper case": (VALUE.upper().encode(), False),
    "split": (" ".join(VALUE).encode(), False),
}


@pytest.mark.parametrize("form", TOLD)
async def test_answer__that_repeats_the_value__is_searched_for_it(form: str) -> None:
    said, found = TOLD[form]

    def make(request: OutgoingRequest) -> IncomingResponse:
        body = b"before " + said + b" after"
        return IncomingResponse(status=200, headers=(("x-echo", said.decode()),), body=body)

    result = await fetch(Echo(make), Safe(), headers=[("authorization", BEARER.replace(VALUE, P))])
    assert isinstance(result.value, dict)
    assert (HIDDEN in result.value["body"]) is found
    assert (HIDDEN_TEXT in result.value["headers"][0]["value"]) is found
    assert result.value["body"].startswith(b"before ")
    assert result.value["body"].endswith(b" after")
    if found:
        assert said not in result.value["body"]


async def test_answer__compressed_unasked__is_not_passed_on() -> None:
    def make(request: OutgoingRequest) -> IncomingResponse:
        return IncomingResponse(status=200, headers=(("content-encoding", "gzip"),), body=gzip.compress(VALUE.encode()))

    assert (await fetch(Echo(make), Safe(), headers=[("authorization", P)])).error == "transport"
    # Without a secret in the request it is the guest's own affair.
    assert (await fetch(Echo(make), Safe())).error is None


@given(st.binary(max_size=40), st.binary(max_size=40), st.text('abcXYZ019-_/+="<&', min_size=8, max_size=40))
async def test_scrub__leaves_no_value_and_everything_else(before: bytes, after: bytes, value: str) -> None:
    answer = IncomingResponse(status=200, headers=(), body=before + value.encode() + after)
    body = (await scrub(answer, [value])).body
    assert HIDDEN in body
    assert value.encode() not in body.replace(HIDDEN, b"\0")
    untouched = IncomingResponse(status=200, headers=(), body=before)
    assert (await scrub(untouched, ["a value that is not there"])).body == before


async def test_scrub__body_and_value_made_for_each_other__cost_no_more_than_others() -> None:
    # All but the last letter of the value is there at every place: a search that begins anew at each would compare 30 thousand million.
    value = "a" * (MOST_CHARACTERS - 1) + "b"
    body = b"a" * (8 * MIB)
    answer = IncomingResponse(status=200, headers=(("x-echo", "a" * 30_000),), body=body)
    began = time.thread_time()
    assert (await scrub(answer, [value])).body == body
    # A guard: it takes a second at most where that search would take a minute.
    assert time.thread_time() - began < 20


async def test_placeholder__written_very_often__makes_no_longer_headers_than_a_guest_may_send() -> None:
    server = Echo()
    assert (await fetch(server, Safe("v" * 1_000), headers=[("authorization", P * 1_000)])).error == "invalid-url"
    assert not server.sent
    assert (await fetch(server, Safe("v" * 1_000), headers=[("authorization", P * 10)])).error is None


async def test_request_bytes__count_what_is_sent_rather_than_the_placeholder() -> None:
    grant = grant_of("http.fetch", egress=EGRESS)
    handlers = http_handlers(Echo(), ceiling=CEILING, limits=FetchLimits(), metrics=Metrics(), secrets=Safe("v" * 1_000))
    headers = [{"name": "authorization", "value": P}]
    arguments = {"method": "GET", "url": "https://api.example.com/", "headers": headers, "body": None}
    assert (await make_broker(handlers).call(grant, FETCH, (arguments,))).error is None
    assert grant.used[REQUEST_BYTES] == len("authorization") + 1_000 + len("accept-encodingidentity") + 1


async def test_log__of_a_failed_request__does_not_repeat_the_value(caplog: pytest.LogCaptureFixture) -> None:
    """A bound host answers with what it was sent in the place of a status line; the library's error quotes it."""

    class Failing(Echo):
        async def fetch(self, request: OutgoingRequest) -> IncomingResponse:
            raise EgressError(Failure.PROTOCOL, f"BadStatusLine: {dict(request.headers)['authorization']}")

    class Revealing(Safe):
        async def reveal(self, grant: InvocationGrant, name: str) -> str:
            value = await super().reveal(grant, name)
            grant.revealed.add(value)
            return value

    with caplog.at_level(logging.DEBUG):
        assert (await fetch(Failing(), Revealing(), headers=[("authorization", P)])).error == "transport"
    assert "BadStatusLine" in caplog.text
    assert VALUE not in caplog.text
