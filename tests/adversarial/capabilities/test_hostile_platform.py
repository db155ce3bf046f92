"""A platform that is broken, slow or somebody else: every function answers in its shape, within bounds, and gives nothing away."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runnerd.capabilities.broker import CapabilityBroker
from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.grants import GuestUser
from runnerd.capabilities.platform import invoicing
from runnerd.capabilities.platform.assembly import Platform
from runnerd.capabilities.platform.client import PlatformError
from runnerd.capabilities.platform.routes import RouteError, target_of
from runnerd.capabilities.results import HostResult
from runnerd.capabilities.values import reply_to_wire
from tests.fakes.capabilities import INSTALL, OTHER_INSTALL, make_broker, make_grant
from tests.fakes.dispatch_kit import eventually
from tests.fakes.platform_kit import (
    CALL_ROUTE,
    CLIENT,
    CLIENT_DOCUMENT,
    CREATE,
    GET_CLIENT,
    GET_SERVICE,
    LIST_CLIENTS,
    LIST_SERVICES,
    SERVICE,
    SERVICE_DOCUMENT,
    TOKEN,
    invoice,
    options_for,
    page,
    platform_broker,
    services_page,
)
from tests.fakes.platform_server import Answer, FakePlatform, Received, document, fake_platform, raw, response, saying

CALLS: list[tuple[HostFunction, tuple[Any, ...]]] = [
    (CALL_ROUTE, ("x", None)),
    (CREATE, (invoice(),)),
    (LIST_CLIENTS, (page(),)),
    (GET_CLIENT, (CLIENT,)),
    (LIST_SERVICES, (services_page(),)),
    (GET_SERVICE, (SERVICE,)),
]
READS = CALLS[2:]


def failed_as_it_should(function: HostFunction, result: HostResult) -> bool:
    reply_to_wire(function, result.value, error=result.error)
    if function is CREATE:
        return isinstance(result.value, dict) and result.value["error"] == invoicing.UNKNOWN and not result.value["success"]
    return result.error == "internal"


async def everything_fails(broker: CapabilityBroker, **changes: Any) -> None:
    for function, arguments in CALLS:
        assert failed_as_it_should(function, await broker.call(make_grant(**changes), function, arguments)), function.qualified_name


async def forever(_received: Received, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def endless(head: bytes, piece: bytes) -> Answer:
    async def answer(_received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return answer


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(raw(b"", close=True), id="closes at once"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\ncontent-le", close=True), id="cut in the head"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", close=True), id="cut in the body"),
        pytest.param(raw(CHUNKED + b"5\r\n{", close=True), id="cut in a chunk"),
        pytest.param(raw(b"this is not HTTP\r\n\r\n", close=True), id="another protocol"),
        pytest.param(raw(response(200, b"{}", ("content-length", "3"))), id="two lengths"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n"), id="impossible length"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n"), id="length above the bound"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000 + b"\r\n\r\n"), id="one huge header"),
        pytest.param(endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 1000), id="headers without end"),
        pytest.param(endless(CHUNKED, b"4000\r\n" + b" " * 0x4000 + b"\r\n"), id="body without end"),
        pytest.param(endless(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 0x4000), id="body without length or end"),
        pytest.param(endless(CHUNKED, b"1\r\n \r\n" * 1000), id="body in single bytes"),
        pytest.param(saying(200, b"\x1f\x8b" + b"\0" * 100, ("content-encoding", "gzip")), id="packed"),
        pytest.param(saying(200, b"{}", ("content-encoding", "identity, gzip")), id="packed, among others"),
        pytest.param(raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), id="another protocol offered"),
    ],
)
async def test_an_answer_that_breaks_a_bound_is_a_failure(
    platform: FakePlatform, broker: CapabilityBroker, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    platform.answer = answer
    await everything_fails(broker)
    assert caplog.text.count("platform call failed") == len(CALLS)
    assert "in time" not in caplog.text, "the bound ended it, not the clock"


@pytest.mark.parametrize(
    "answer", [forever, endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")]
)
async def test_a_platform_that_never_finishes_is_left(platform: FakePlatform, tmp_path: Path, answer: Answer) -> None:
    platform.answer = answer
    async with platform_broker(platform, tmp_path, call_seconds=0.1) as broker:
        await everything_fails(broker)
    async with platform_broker(platform, tmp_path) as broker:
        result = await broker.call(make_grant(deadline=time.monotonic() + 0.1), GET_CLIENT, (CLIENT,))
        assert result.error == "internal"


async def test_a_redirect_is_not_followed_and_shows_nothing_to_anybody(platform: FakePlatform, broker: CapabilityBroker) -> None:
    async with fake_platform() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            platform.answer = saying(status, b"", ("location", elsewhere.base_url + "/api/steal"))
            await everything_fails(broker)
        assert elsewhere.connections == []


async def test_cookies_are_not_kept(platform: FakePlatform, broker: CapabilityBroker) -> None:
    platform.answer = saying(200, b"{}", ("set-cookie", "session=1; Path=/"), ("www-authenticate", "Basic"))
    for _ in range(2):
        for function, arguments in CALLS:
            await broker.call(make_grant(), function, arguments)
    assert all(not {"cookie", "authorization"} & received.headers.keys() for received in platform.received)


async def test_the_environment_has_no_say(platform: FakePlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_platform() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.base_url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with platform_broker(platform, tmp_path) as broker:
            assert (await broker.call(make_grant(), CALL_ROUTE, ("x", None))).error is None
        assert proxy.connections == []


async def test_nobody_there(tmp_path: Path) -> None:
    async with fake_platform() as gone:
        base_url = gone.base_url
    daemon = Platform(options_for(tmp_path, base_url))
    try:
        await everything_fails(make_broker(*daemon.handlers()))
    finally:
        await daemon.aclose()


# --- content ---------------------------------------------------------------------------------------------------------------------------

SPOILS: list[Any] = [None, True, 0, -1, 1.5, 2**32, 10**400, "", "\ud800", [], {}, [[]], {"a": 1}]


def spoilt(good: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in good:
        yield {key: value for key, value in good.items() if key != name}
        for spoil in SPOILS:
            yield good | {name: spoil}


INVOICE_DOCUMENT = {"invoiceId": "i", "invoiceNumber": "n", "status": "s", "subtotal": 1, "tax": 1, "total": 1}
ITEMS: dict[str, dict[str, Any]] = {"clients": CLIENT_DOCUMENT, "services": SERVICE_DOCUMENT, "invoicing": INVOICE_DOCUMENT}


def answer_of(function: HostFunction, item: object) -> dict[str, Any]:
    """A good answer around an item."""
    if function is CREATE:
        return {"success": True, "invoice": item}
    return {"item": item} if function.name.startswith("get") else {"items": [item], "totalCount": 1, "page": 1, "pageSize": 25}


@pytest.mark.parametrize(("function", "arguments"), CALLS[1:], ids=lambda value: getattr(value, "qualified_name", ""))
async def test_every_spoilt_field_ends_in_the_function_s_own_shape(
    platform: FakePlatform, broker: CapabilityBroker, function: HostFunction, arguments: tuple[Any, ...]
) -> None:
    item = ITEMS[function.interface.rpartition("/")[2]]
    contents = [*spoilt(answer_of(function, item)), *(answer_of(function, bad) for bad in spoilt(item))]
    refused = 0
    for content in contents:
        platform.answer = document(200, content)
        result = await broker.call(make_grant(), function, arguments)
        reply_to_wire(function, result.value, error=result.error)
        refused += failed_as_it_should(function, result)
    assert refused > len(contents) // 3
    platform.answer = document(200, {"items": [CLIENT_DOCUMENT] * 101, "totalCount": 101, "page": 1, "pageSize": 25})
    assert failed_as_it_should(function, await broker.call(make_grant(), function, arguments))


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[" * 200_000, b'{"item":' * 100_000, b'{"item": NaN}', b"\xff\xfe", b"1" * 100_000, b'"' + b"x" * 900_000 + b'"'],
)
async def test_content_that_is_no_json_object_is_a_failure(platform: FakePlatform, broker: CapabilityBroker, body: bytes) -> None:
    platform.answer = saying(200, body, ("content-type", "application/json"))
    for function, arguments in CALLS[1:]:
        assert failed_as_it_should(function, await broker.call(make_grant(), function, arguments))


async def test_errors_that_are_no_json_are_cases_like_others(platform: FakePlatform, broker: CapabilityBroker) -> None:
    for body in (b"", b"\xff", b"[" * 200_000, b'{"code": ["x"]}', b'{"code": "a\\nb", "fieldErrors": [1]}'):
        platform.answer = saying(400, body)
        assert (await broker.call(make_grant(), GET_CLIENT, (CLIENT,))).error == "invalid-input"
        value = (await broker.call(make_grant(), CREATE, (invoice(),))).value
        assert isinstance(value, dict)
        assert (value["error"], value["field_errors"]) == (invoicing.REJECTED, None)


# --- between installs ------------------------------------------------------------------------------------------------------------------


async def test_two_installs_never_share_a_connection_or_an_answer(platform: FakePlatform, broker: CapabilityBroker) -> None:
    async def echo(received: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)
        writer.write(response(200, received.headers["x-ext-install-id"].encode()))

    platform.answer = echo

    async def ask(install: str) -> None:
        grant = make_grant(install_id=install)
        for _ in range(20):
            assert (await broker.call(grant, CALL_ROUTE, ("x", None))).value == install.encode()

    async with asyncio.TaskGroup() as group:
        for install in (INSTALL, OTHER_INSTALL) * 3:
            group.create_task(ask(install))
    assert len(platform.received) == 120
    assert len(platform.connections) < 20, "connections are kept"
    for requests in platform.connections:
        assert len({received.headers["x-ext-install-id"] for received in requests}) <= 1


async def test_an_answer_too_many_reaches_no_other_install(platform: FakePlatform, broker: CapabilityBroker) -> None:
    """Whoever can make the platform, or a proxy before it, answer twice must not choose what somebody else reads."""
    platform.answer = raw(response(200, b"mine") + response(200, b"planted"))
    assert (await broker.call(make_grant(), CALL_ROUTE, ("x", None))).value == b"mine"
    platform.answer = saying(200, b"theirs")
    for _ in range(3):
        assert (await broker.call(make_grant(install_id=OTHER_INSTALL), CALL_ROUTE, ("x", None))).value == b"theirs"


async def test_one_install_s_slow_calls_hold_no_other_install(platform: FakePlatform, tmp_path: Path) -> None:
    async def slow_for_one(received: Received, writer: asyncio.StreamWriter) -> None:
        if received.headers["x-ext-install-id"] == INSTALL:
            await asyncio.Event().wait()
        writer.write(response(200, b"quick"))

    platform.answer = slow_for_one
    async with platform_broker(platform, tmp_path, calls=4, calls_per_install=2) as broker:
        waiting = [asyncio.create_task(broker.call(make_grant(), CALL_ROUTE, ("x", None))) for _ in range(10)]
        await eventually(lambda: platform.open == 2)
        for _ in range(5):
            assert (await broker.call(make_grant(install_id=OTHER_INSTALL), CALL_ROUTE, ("x", None))).value == b"quick"
        assert platform.most_open <= 3
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        platform.answer = saying(200, b"free")
        for _ in range(3):
            assert (await broker.call(make_grant(), CALL_ROUTE, ("x", None))).value == b"free", "cancelled calls gave their places back"


async def test_all_calls_together_are_bounded(platform: FakePlatform, tmp_path: Path) -> None:
    release = asyncio.Event()

    async def held(_received: Received, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(response(200, b"x"))

    platform.answer = held
    async with platform_broker(platform, tmp_path, calls=3, calls_per_install=2) as broker:
        grants = [make_grant(install_id=f"0197a000-0000-7000-8000-{number:012}") for number in range(6)]
        tasks = [asyncio.create_task(broker.call(grant, CALL_ROUTE, ("x", None))) for grant in grants * 2]
        await eventually(lambda: platform.open == 3)
        release.set()
        assert [(await task).value for task in tasks] == [b"x"] * 12
        assert platform.most_open == 3


# --- what reaches the wire, and the log ------------------------------------------------------------------------------------------------


async def test_what_was_checked_is_what_goes_over_the_wire(platform: FakePlatform, broker: CapabilityBroker) -> None:
    grant, sent = make_grant(), 0
    for character in [*map(chr, range(128)), "ü", "%41", "%20", "%2F", "%5C", "%C3%BC", "%ff", "/./", "/../", "//"]:
        for route in (f"/api/x{character}y", f"/api/x?{character}y", f"x{character}", f"{character}x"):
            result = await broker.call(grant, CALL_ROUTE, (route, None))
            try:
                target = target_of(route, grant.extension_id)
            except RouteError:
                assert result.error == "bad-request"
            else:
                sent += 1
                assert (result.error, platform.last.target) == (None, target)
    assert len(platform.received) == sent > 200


class Opened:
    async def find(self, grant: Any) -> str | None:
        if grant.request_id == "unopened":
            message = "the secret cannot be opened"
            raise PlatformError(message)
        return "api-key-marker"


MARKERS = [
    TOKEN,
    "api-key-marker",
    "user-id-marker",
    "mail-marker",
    "route-marker",
    "query-marker",
    "payload-marker",
    "answer-marker",
    "search-marker",
]


async def test_nothing_that_guest_user_or_platform_said_is_logged(
    platform: FakePlatform, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    user = GuestUser(user_id="user-id-marker", email="mail-marker@example.com")
    answers: list[Answer] = [
        saying(200, b"answer-marker"),
        saying(302, b"", ("location", "/answer-marker")),
        *(document(status, {"error": f"answer-marker {TOKEN}", "code": "SOME_CODE"}) for status in (400, 401, 403, 404, 409, 429, 500)),
        raw(b"answer-marker\r\n\r\n", close=True),
        raw(b"HTTP/1.1 200 OK\r\nanswer-marker\r\n\r\n", close=True),
        saying(200, b"answer-marker", ("content-encoding", "answer-marker")),
    ]
    with caplog.at_level(logging.DEBUG):
        async with platform_broker(platform, tmp_path, api_keys=Opened()) as broker:
            for platform.answer in answers:
                for request_id in ("r1", "unopened"):
                    grant = make_grant(user=user, request_id=request_id)
                    for route in ("/api/route-marker?q=query-marker", "/api/route-marker/../x"):
                        await broker.call(grant, CALL_ROUTE, (route, b"payload-marker"))
                    await broker.call(grant, LIST_CLIENTS, (page(search="search-marker"),))
                    await broker.call(grant, CREATE, (invoice(po_number="payload-marker"),))
    text = json.dumps([record.__dict__ for record in caplog.records], default=repr) + caplog.text
    assert "SOME_CODE" in text
    assert '"status": 429' in text
    assert [marker for marker in MARKERS if marker in text] == []
