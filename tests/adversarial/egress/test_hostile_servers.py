"""Servers of the attacker's: answers without end, answers that lead elsewhere, certificates that are not theirs."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnerd.egress.pools import MAX_HEADERS
from tests.fakes.egress_kit import LOOPBACK, Authority, EgressKit, Handler, egress, ok, raw_server, read_request, says, until

MIB = 1024 * 1024
ZONE = {name: says("127.0.0.1") for name in ("good.example", "other.example", "old.example", "stranger.example")}


@pytest.fixture
async def kit() -> AsyncIterator[EgressKit]:
    async with egress(ZONE, allowed_ranges=LOOPBACK) as made:
        yield made


def endless(piece: bytes, first: bytes = b"") -> Handler:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(first)
        while True:
            writer.write(piece)
            await writer.drain()

    return serve


def slow(first: bytes, piece: bytes) -> Handler:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(first)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)

    return serve


def once(answer: bytes) -> Handler:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    return serve


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
MANY = b"".join(b"h%d: x\r\n" % number for number in range(MAX_HEADERS + 10))

ENDLESS = {
    "a body": (endless(b"x" * 65_536, b"HTTP/1.1 200 OK\r\n\r\n"), "response_size"),
    "a body longer than it says": (endless(b"x" * 65_536, b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"), "response_size"),
    "chunks": (endless(b"10000\r\n" + b"x" * 65_536 + b"\r\n", CHUNKED), "response_size"),
    "tiny chunks": (endless(b"1\r\nx\r\n" * 10_000, CHUNKED), "protocol"),
    "extensions of a chunk": (endless(b"x" * 65_536, CHUNKED + b"1;"), "protocol"),
    "interim answers": (endless(b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000), "protocol"),
    "trailers": (endless(b"t: x\r\n" * 1_000, CHUNKED + b"0\r\n"), "protocol"),
    "headers": (endless(b"h: x\r\n" * 1_000, b"HTTP/1.1 200 OK\r\n"), "protocol"),
    "one header": (endless(b"x" * 65_536, b"HTTP/1.1 200 OK\r\nh: "), "protocol"),
    "a status line": (endless(b"x" * 65_536, b"HTTP/1.1 200 "), "protocol"),
    "many headers": (once(b"HTTP/1.1 200 OK\r\n" + MANY + b"content-length: 0\r\n\r\n"), "protocol"),
    "no HTTP": (once(b"hello\r\n\r\n"), "protocol"),
    "an end in the body": (once(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx"), "protocol"),
    "an end in a chunk": (once(CHUNKED + b"ff\r\nx"), "protocol"),
    "another protocol": (once(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"), "protocol"),
    "no status": (once(b"HTTP/1.1 999 ?\r\ncontent-length: 0\r\n\r\n"), "protocol"),
    "a number too large": (once(b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551616\r\n\r\n"), "protocol"),
    "two lengths": (once(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"), "protocol"),
    "a NUL in a header": (once(b"HTTP/1.1 200 OK\r\nh: a\0b\r\ncontent-length: 0\r\n\r\n"), "protocol"),
    "a control character in a header": (once(b"HTTP/1.1 200 OK\r\nh: a\x01b\r\ncontent-length: 0\r\n\r\n"), "protocol"),
    "a name that is none": (once(b"HTTP/1.1 200 OK\r\nh\xe9: x\r\ncontent-length: 0\r\n\r\n"), "protocol"),
}

SLOW = (
    slow(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    slow(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    slow(b"HTTP/1.1 200 OK\r\n", b"h: x\r\n"),
    slow(b"", b""),
)


async def test_answers__without_end_or_form__end_the_request_and_nothing_else(kit: EgressKit) -> None:
    async def attack(number: int, handler: Handler, seconds: float) -> str:
        async with raw_server(handler) as server:
            url = f"http://127.0.0.1:{server.port}/"
            return await kit.failure(url, tenant_id=f"t{number}", install_id=f"i{number}", seconds=seconds)

    async with raw_server(ok()) as neighbour:
        pid = kit.client.pid
        found = {name: await attack(number, handler, 30.0) for number, (name, (handler, _)) in enumerate(ENDLESS.items())}
        wrong = {name: end for name, end in found.items() if end != ENDLESS[name][1]}
        assert not wrong
        # What never comes to an end by its bytes does by its time.
        ends = await asyncio.gather(*(attack(100 + number, handler, 1.0) for number, handler in enumerate(SLOW)))
        assert set(ends) == {"timeout"}
        assert (await kit.get(f"http://good.example:{neighbour.port}/")).status == 200
        assert kit.client.pid == pid, "an answer cost the process"


async def test_answer__that_nobody_asked_for__is_nobodys(kit: EgressKit) -> None:
    more = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ok(b"asked for"))
        await more.wait()
        writer.write(ok(b"another's"))
        await writer.drain()
        # The first of its kind has it all; the end of the connection says that it was dropped.
        assert await reader.read() == b""

    async with raw_server(serve) as server, raw_server(ok()) as other:
        url = f"http://good.example:{server.port}/"
        assert (await kit.get(url)).body == b"asked for"
        more.set()
        # What the other server answers was received after what this one sent unasked.
        assert (await kit.get(f"http://good.example:{other.port}/")).status == 200
        assert (await kit.get(url)).body == b"asked for"
        assert len(server.accepted) == 2


async def test_body__at_the_limit_and_one_beyond(kit: EgressKit) -> None:
    async with raw_server(ok(b"x" * 1_000)) as server:
        url = f"http://good.example:{server.port}/"
        counted: list[int] = []
        await kit.get(url, received=counted.append)
        size = sum(counted)
        assert (await kit.get(url, response_bytes=size)).body == b"x" * 1_000
        assert await kit.failure(url, response_bytes=size - 1) == "response_size"


async def test_body__in_single_bytes_and_cut__is_whole_as_far_as_it_came(kit: EgressKit) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED)
        for number in range(100):
            writer.write(b"1\r\n%d\r\n" % (number % 10))
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async with raw_server(drip) as cut, raw_server(ok(b"x" * 200_001)) as long:
        counted: list[int] = []
        # What had come by then is counted, whatever became of the request.
        assert await kit.failure(f"http://good.example:{cut.port}/", seconds=2.0, received=counted.append) == "timeout"
        assert sum(counted) == 100
        assert (await kit.get(f"http://good.example:{long.port}/")).body == b"x" * 200_001


async def test_body__whose_request_is_cancelled__is_counted_as_far_as_it_came(kit: EgressKit) -> None:
    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n" + b"x" * 65_536)
        await reader.read()

    counted: list[int] = []
    async with raw_server(stuck) as server:
        asking = asyncio.ensure_future(kit.get(f"http://good.example:{server.port}/", received=counted.append))
        await until(lambda: sum(counted) == len("content-length999999") + 65_536)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect__is_an_answer_and_is_not_followed(kit: EgressKit, status: int) -> None:
    async with raw_server(ok()) as inner:
        where = f"http://127.0.0.1:{inner.port}/latest/meta-data/"
        answer = f"HTTP/1.1 {status} Go\r\nlocation: {where}\r\ncontent-length: 0\r\n\r\n".encode()
        async with raw_server(answer) as server:
            found = await kit.get(f"http://good.example:{server.port}/")
        assert (found.status, dict(found.headers)["location"]) == (status, where)
        assert not inner.accepted


async def test_compressed_body__passes_as_it_is(kit: EgressKit) -> None:
    bomb = gzip.compress(bytes(16 * MIB))
    async with raw_server(ok(bomb, "content-encoding: gzip")) as server:
        found = await kit.get(f"http://good.example:{server.port}/")
    assert (found.body, dict(found.headers)["content-encoding"]) == (bomb, "gzip")


async def test_request__carries_what_was_given_and_nothing_of_ours(kit: EgressKit) -> None:
    async with raw_server(ok(b"", "set-cookie: a=b; path=/")) as server:
        url = f"http://good.example:{server.port}/a/../b?c=%2e&d=1#fragment"
        await kit.get(url, method="POST", headers=(("x-a", "1"), ("x-a", "2"), ("cookie", "mine=1")), body=b"hello")
        await kit.get(url, headers=(("user-agent", "guest"),))
    first, second = (request.split(b"\r\n\r\n")[0].lower().split(b"\r\n") for request in server.requests)
    assert first[0] == b"post /a/../b?c=%2e&d=1 http/1.1"
    host = f"host: good.example:{server.port}".encode()
    wanted = [host, b"x-a: 1", b"x-a: 2", b"cookie: mine=1", b"user-agent: extrunner", b"content-length: 5"]
    assert sorted(first[1:]) == sorted(wanted)
    # No cookie of the answer before.
    assert sorted(second[1:]) == sorted([host, b"user-agent: guest"])


async def test_tls__every_certificate_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    authority, stranger = Authority.make(tmp_path), Authority.make(tmp_path, "stranger")
    servers: dict[str, tuple[ssl.SSLContext, str]] = {
        "good.example": (authority.server("good.example"), "answered 200"),
        "other.example": (authority.server("good.example"), "tls"),
        "old.example": (authority.server("old.example", days=(-2, -1)), "tls"),
        "stranger.example": (stranger.server("stranger.example"), "tls"),
        "127.0.0.1": (authority.server("good.example"), "tls"),
    }
    async with egress(ZONE, allowed_ranges=LOOPBACK, ca_file=str(authority.file)) as kit:
        for name, (context, end) in servers.items():
            async with raw_server(ok(), tls=context) as server:
                assert await kit.failure(f"https://{name}:{server.port}/") == end, name
                assert len(server.requests) == (end == "answered 200"), "a request was sent to whom nobody knows"
    async with egress(ZONE, allowed_ranges=LOOPBACK) as kit, raw_server(ok(), tls=authority.server("good.example")) as server:
        assert await kit.failure(f"https://good.example:{server.port}/") == "tls"


async def test_proxy_of_the_environment__is_not_asked(kit: EgressKit, monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_server(ok()) as proxy, raw_server(ok(b"direct")) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with egress(ZONE, allowed_ranges=LOOPBACK) as other:
            assert (await other.get(f"http://good.example:{server.port}/")).body == b"direct"
        assert not proxy.accepted


async def test_cancelled_request__closes_its_connection(kit: EgressKit) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.read()
        ended.set()

    async with raw_server(serve) as server, asyncio.timeout(30):
        fetching = asyncio.ensure_future(kit.get(f"http://good.example:{server.port}/"))
        await asked.wait()
        fetching.cancel()
        await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await fetching
