"""http.fetch before anything leaves: what a request may hold, what one invocation may have, what is counted and explained."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from registry.domain.egress import EgressRule, InstallEgress
from runnerd.capabilities.catalog import BY_NAME
from runnerd.capabilities.egress_policy import EgressCeiling
from runnerd.capabilities.grants import REQUEST_BYTES, RESPONSE_BYTES, InvocationGrant
from runnerd.capabilities.http import REQUESTS, FetchLimits, http_handlers
from runnerd.capabilities.outgoing import EgressError, Failure, IncomingResponse, OutgoingRequest
from runnerd.capabilities.results import HostResult
from runnerd.telemetry.metrics import Metrics
from tests.fakes.capabilities import grant_of, make_broker

FETCH = BY_NAME["alga:extension/http", "fetch"]
EGRESS = InstallEgress(rules=(EgressRule(host="api.example.com"),))
URL = "https://api.example.com/"


class MemoryEgress:
    """Answers as it is told."""

    def __init__(self, answer: IncomingResponse | EgressError | None = None, *, received: int = 7) -> None:
        self.answer = answer or IncomingResponse(status=200, headers=(("a", "b"),), body=b"hello")
        self.received = received
        self.sent: list[OutgoingRequest] = []

    async def fetch(self, request: OutgoingRequest) -> IncomingResponse:
        self.sent.append(request)
        request.received(self.received)
        if isinstance(self.answer, EgressError):
            raise self.answer
        return self.answer


class Caller:
    """One invocation."""

    def __init__(self, egress: MemoryEgress, *, limits: FetchLimits | None = None, **grant: Any) -> None:
        self.metrics = Metrics()
        self.broker = make_broker(http_handlers(egress, ceiling=EgressCeiling(), limits=limits or FetchLimits(), metrics=self.metrics))
        self.grant: InvocationGrant = grant_of("http.fetch", **{"egress": EGRESS} | grant)

    async def fetch(self, url: str = URL, *, method: str = "GET", headers: Any = (), body: bytes | None = None) -> HostResult:
        fields = [{"name": name, "value": value} for name, value in headers]
        return await self.broker.call(self.grant, FETCH, ({"method": method, "url": url, "headers": fields, "body": body},))

    def counted(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("extrunner_egress_requests_total", {"result": result}) or 0.0


async def test_request__is_passed_on_with_its_authority_and_answered() -> None:
    egress = MemoryEgress()
    caller = Caller(egress)
    result = await caller.fetch(method="post", headers=[("X-A", " 1 "), ("x-a", "2")], body=b"body")
    assert result.value == {"status": 200, "headers": [{"name": "a", "value": "b"}], "body": b"hello"}
    (sent,) = egress.sent
    assert (sent.tenant_id, sent.install_id, sent.method) == (caller.grant.tenant_id, caller.grant.install_id, "POST")
    assert (sent.headers, sent.body) == ((("x-a", "1"), ("x-a", "2")), b"body")
    assert 0 < sent.seconds <= FetchLimits().seconds
    assert caller.counted("ok") == 1
    assert caller.grant.used == {REQUESTS: 1, REQUEST_BYTES: 8 + 1 + 4, RESPONSE_BYTES: 7}


async def test_seconds__end_with_the_invocation() -> None:
    egress = MemoryEgress()
    await Caller(egress, deadline=time.monotonic() + 1).fetch()
    assert egress.sent[0].seconds <= 1


@pytest.mark.parametrize(
    "name",
    ["Host", "content-length", "Transfer-Encoding", "connection", "keep-alive", "TE", "trailer", "upgrade", "expect", "Proxy-Anything"],
)
async def test_headers__that_are_ours__are_not_the_guests(name: str) -> None:
    egress = MemoryEgress()
    assert (await Caller(egress).fetch(headers=[(name, "evil.example"), ("kept", "1")])).error is None
    assert egress.sent[0].headers == (("kept", "1"),)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", [("a", "b\r\nc: d")]),
        ("GET", [("a", "b\nc: d")]),
        ("GET", [("a", "b\rc")]),
        ("GET", [("a", "b\0c")]),
        ("GET", [("a", "\x7f")]),
        ("GET", [("a\r\nb", "c")]),
        ("GET", [("a b", "c")]),
        ("GET", [("a:", "c")]),
        ("GET", [("", "c")]),
        ("GET", [("ä", "c")]),
        ("GET", [(f"h{number}", "") for number in range(65)]),
        ("GET", [("a", "x" * 16_384)]),
        ("CONNECT", []),
        ("TRACE", []),
        ("GET / HTTP/1.1\r\nx: ", []),
        ("PO\u017fT", []),
        ("", []),
    ],
)
async def test_request__that_could_be_two__is_never_sent(method: str, headers: list[tuple[str, str]]) -> None:
    egress = MemoryEgress()
    caller = Caller(egress)
    assert (await caller.fetch(method=method, headers=headers)).error == "invalid-url"
    assert not egress.sent
    assert caller.counted("invalid") == 1


async def test_invalid_requests__write_no_line_each_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert (await Caller(MemoryEgress()).fetch("nonsense")).error == "invalid-url"
        assert (await Caller(MemoryEgress()).fetch(method="TRACE")).error == "invalid-url"
    assert not caplog.records


async def test_requests__of_one_invocation__are_so_many() -> None:
    egress = MemoryEgress()
    caller = Caller(egress, limits=FetchLimits(requests=2))
    results = [await caller.fetch() for _ in range(4)]
    assert [result.error for result in results] == [None, None, "not-allowed", "not-allowed"]
    assert len(egress.sent) == 2
    assert results[3].denial is not None
    assert results[3].denial["why"] == "egress_limit"
    assert caller.counted("limit") == 2
    # Another invocation has its own.
    assert (await Caller(egress, limits=FetchLimits(requests=2)).fetch()).error is None


@pytest.mark.parametrize(("size", "error"), [(99, None), (100, "not-allowed")])
async def test_request_bytes__path_headers_and_body_count(size: int, error: str | None) -> None:
    egress = MemoryEgress()
    caller = Caller(egress, limits=FetchLimits(request_bytes=200))
    assert (await caller.fetch(body=b"x" * 99)).error is None
    result = await caller.fetch(body=b"x" * size)
    assert (result.error, len(egress.sent)) == (error, 1 if error else 2)


async def test_response_bytes__are_what_is_left_and_count_when_there_is_no_answer() -> None:
    egress = MemoryEgress(EgressError(Failure.TIMEOUT), received=60)
    caller = Caller(egress, limits=FetchLimits(response_bytes=100))
    assert (await caller.fetch()).error == "transport"
    assert (await caller.fetch()).error == "transport"
    assert [sent.response_bytes for sent in egress.sent] == [100, 40]
    assert (await caller.fetch()).error == "not-allowed"
    assert len(egress.sent) == 2
    assert caller.grant.used[RESPONSE_BYTES] == 120


@pytest.mark.parametrize(
    ("failure", "error", "why"),
    [
        (Failure.ADDRESS, "not-allowed", "address_refused"),
        (Failure.RESPONSE_SIZE, "not-allowed", "egress_limit"),
        (Failure.DNS, "transport", None),
        (Failure.CONNECT, "transport", None),
        (Failure.TLS, "transport", None),
        (Failure.TIMEOUT, "transport", None),
        (Failure.PROTOCOL, "transport", None),
        (Failure.UNAVAILABLE, "transport", None),
        (Failure.INTERNAL, "internal", None),
    ],
)
async def test_failure__has_its_case_and_tells_no_address(failure: Failure, error: str, why: str | None) -> None:
    caller = Caller(MemoryEgress(EgressError(failure, "10.1.2.3 is refused")))
    result = await caller.fetch()
    assert (result.error, None if result.denial is None else result.denial["why"]) == (error, why)
    assert "10.1.2.3" not in str(result)


async def test_not_on_the_list__is_explained_and_never_leaves() -> None:
    egress = MemoryEgress()
    caller = Caller(egress)
    result = await caller.fetch("https://evil.example/path?secret=1")
    assert result.error == "not-allowed"
    assert result.denial is not None
    assert result.denial["why"] == "host_not_declared"
    assert "secret" not in str(result.denial)
    assert (egress.sent, caller.grant.used, caller.counted("not_on_list")) == ([], {}, 1)


async def test_capability__not_granted__is_not_asked_for_its_lists() -> None:
    egress = MemoryEgress()
    caller = Caller(egress)
    caller.grant = grant_of(egress=EGRESS)
    assert (await caller.fetch()).error == "not-allowed"
    assert not egress.sent
