"""Bytes that no browser sends: smuggling shapes, floods of headers, bodies that drip."""

from __future__ import annotations

import asyncio

import pytest

from tests.adversarial.gateway.conftest import Served
from tests.fakes.fake_runner import completed
from tests.fakes.gateway_kit import BODY_LIMIT, EXTENSION
from tests.fakes.raw_http import RawConnection

PATH = f"/api/ext/{EXTENSION}"


def request(served: Served, *lines: str, method: str = "GET", path: str = PATH, body: bytes = b"") -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: gateway.test", f"Authorization: {served.kit.bearer()['authorization']}", *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


class TestSmuggling:
    """One byte stream, one reading: what a proxy could read differently is refused, and the connection ends."""

    SECOND = b"GET /api/ext/com.smuggled.second HTTP/1.1\r\nHost: x\r\n\r\n"

    @pytest.mark.parametrize(
        ("lines", "body"),
        [
            (("Content-Length: 5", "Transfer-Encoding: chunked"), b"0\r\n\r\n"),
            (("Transfer-Encoding: chunked", "Content-Length: 5"), b"0\r\n\r\n"),
            (("Content-Length: 5", "Content-Length: 6"), b"hello"),
            (("Content-Length: 5", "Content-Length: 5"), b"hello"),
            (("Content-Length: 5, 5",), b"hello"),
            (("Content-Length: +5",), b"hello"),
            (("Content-Length: -5",), b"hello"),
            (("Content-Length: 0x5",), b"hello"),
            (("Content-Length: 5 5",), b"hello"),
            (("Content-Length: 99999999999999999999999",), b"hello"),
            (("Transfer-Encoding: xchunked",), b"0\r\n\r\n"),
            (("Transfer-Encoding: chunked, identity",), b"0\r\n\r\n"),
            (("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), b"0\r\n\r\n"),
            (("Transfer-Encoding : chunked",), b"0\r\n\r\n"),
            (("Transfer-Encoding:\x0bchunked",), b"0\r\n\r\n"),
            ((" Content-Length: 5",), b"hello"),
            (("X-A: b\r\n folded",), b""),
            (("X-A: b\nTransfer-Encoding: chunked",), b"0\r\n\r\n"),
            (("X-A\x00: b",), b""),
            (("X-A: b\x00c",), b""),
            (("X A: b",), b""),
            ((": b",), b""),
            (("Host: other.example",), b""),
            (("X-A",), b""),
        ],
    )
    async def test_ambiguous_framing__refused_and_closed(self, served: Served, lines: tuple[str, ...], body: bytes) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, *lines, method="POST", body=body + self.SECOND))
            answer = await connection.answer()
            assert answer.status == 400
            assert answer.problem["reason"] == "INVALID_REQUEST"
            assert await connection.rest() == b""
        assert all(request.context.extension_id == EXTENSION for request in served.kit.runner.requests)
        assert not served.kit.runner.requests

    @pytest.mark.parametrize(
        "body",
        [
            b"z\r\nhello\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"5\nhello\n0\n\n",
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"fffffffffffffffff\r\n",
        ],
    )
    async def test_broken_chunks__refused(self, served: Served, body: bytes) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, "Transfer-Encoding: chunked", method="POST", body=body))
            answer = await connection.answer()
            assert answer.status == 400
            assert await connection.rest() == b""
        assert not served.kit.runner.requests

    @pytest.mark.parametrize(
        "line",
        [
            b"GET /api/ext/x HTTP/9.9",
            b"GET /api/ext/x",
            b"GET /api/ext/x\x00 HTTP/1.1",
            b"\x16\x03\x01\x02\x00",
            b"PRI * HTTP/2.0\r\n\r\nSM",
            b"NONSENSE /api/ext/x HTTP/1.1",
        ],
    )
    async def test_broken_request_line__refused(self, served: Served, line: bytes) -> None:
        async with await served.connect() as connection:
            await connection.send(line + b"\r\nHost: x\r\n\r\n")
            received = await connection.rest()
        assert received == b"" or received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 ", b"HTTP/1.1 404 "))
        assert b"HTTP/1.1 200" not in received
        assert not served.kit.runner.requests

    async def test_trailers__are_not_headers(self, served: Served) -> None:
        body = b"5\r\nhello\r\n0\r\nX-Alga-Tenant: t2\r\nAuthorization: Bearer x\r\nAccept: trailer\r\n\r\n"
        async with await served.connect() as connection:
            await connection.send(request(served, "Transfer-Encoding: chunked", method="POST", body=body))
            assert (await connection.answer()).status == 200
        names = [(header.name, header.value) for header in served.kit.runner.requests[0].http.headers]
        assert ("x-alga-tenant", "t1") in names
        assert not [value for name, value in names if name == "accept" or value == "t2"]

    async def test_pipelined__answered_in_order(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, path=f"{PATH}/1") + request(served, path=f"{PATH}/2"))
            assert (await connection.answer()).status == 200
            assert (await connection.answer()).status == 200
        assert [asked.http.path for asked in served.kit.runner.requests] == ["/1", "/2"]

    @pytest.mark.parametrize("target", ["http://other.example/api/ext/com.example.notes/x", "/api/ext/com.example.notes/x"])
    async def test_absolute_form__same_extension_and_tenant(self, served: Served, target: str) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, path=target))
            assert (await connection.answer()).status == 200
        assert served.kit.runner.requests[0].context.tenant_id == "t1"
        assert served.kit.runner.requests[0].http.path == "/x"

    @pytest.mark.parametrize(("version", "status"), [("1.1", 400), ("1.0", 401)])
    async def test_no_host__refused_where_it_must_be(self, served: Served, version: str, status: int) -> None:
        async with await served.connect() as connection:
            await connection.send(f"GET {PATH} HTTP/{version}\r\n\r\n".encode())
            assert (await connection.answer()).status == status

    async def test_upgrade__ignored(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, "Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"))
            answer = await connection.answer()
        assert answer.status in {200, 400}
        assert answer.header("upgrade") is None

    @pytest.mark.parametrize(
        "path", ["/api/ext/../admin/v1/publishers", "//api/ext/com.example.notes", "/api/ext/com.example.notes/%2e%2e/x"]
    )
    async def test_odd_paths__never_reach_the_runner(self, served: Served, path: str) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, path=path))
            assert (await connection.answer()).status in {400, 404}
        assert not served.kit.runner.requests


class TestFloods:
    @pytest.mark.parametrize(
        "lines",
        [
            ["X-Big: " + "x" * 70_000],
            [f"X-{number}: {'y' * 300}" for number in range(125)],
            [f"X-{number}: 1" for number in range(200)],
            ["X-" + "n" * 70_000 + ": 1"],
        ],
    )
    async def test_headers__431_and_closed(self, served: Served, lines: list[str]) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, *lines))
            answer = await connection.answer()
            assert answer.status == 431
            assert answer.problem["reason"] == "HEADERS_TOO_LARGE"
            assert await connection.rest() == b""

    async def test_endless_header__cut_before_it_ends(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(b"GET /api/ext/x HTTP/1.1\r\nHost: x\r\nX-Endless: ")
            received = await _flood(connection, b"x" * 16_384)
        assert received == b"" or b" 431 " in received.split(b"\r\n", 1)[0]

    async def test_endless_request_line__cut(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(b"GET /")
            received = await _flood(connection, b"x" * 16_384)
        assert received == b"" or b" 431 " in received.split(b"\r\n", 1)[0]

    async def test_endless_trailer__cut(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, "Transfer-Encoding: chunked", method="POST", body=b"1\r\nx\r\n0\r\nX-Trailer: "))
            received = await _flood(connection, b"t" * 16_384)
        assert received == b"" or b" 431 " in received.split(b"\r\n", 1)[0]
        assert not served.kit.runner.requests

    async def test_endless_chunk_extension__cut(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, "Transfer-Encoding: chunked", method="POST", body=b"1;ext="))
            received = await _flood(connection, b"e" * 16_384)
        assert received == b"" or received.split(b"\r\n", 1)[0].split(b" ")[1] in {b"431", b"400"}
        assert not served.kit.runner.requests

    async def test_chunks_of_one_byte__accepted(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, "Transfer-Encoding: chunked", method="POST", body=b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"))
            assert (await connection.answer()).status == 200
        assert len(served.kit.runner.requests[0].http.body) == 20_000

    async def test_declared_too_large__413_before_a_byte(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, f"Content-Length: {BODY_LIMIT + 1}", method="POST"))
            answer = await connection.answer()
        assert (answer.status, answer.problem["reason"]) == (413, "PAYLOAD_TOO_LARGE")

    async def test_expect_continue__not_invited_when_refused(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, "Content-Length: 1000000", "Expect: 100-continue", method="POST"))
            assert (await connection.answer()).status == 413

    async def test_unauthenticated_upload__refused_unread(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(b"POST /api/ext/com.example.notes HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n" + b"x" * 1000)
            answer = await connection.answer()
        assert answer.status == 401

    async def test_endless_upload_after_a_refusal__ends(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gateway.http_protocol._LINGER_SECONDS", 0.3)
        async with await served.connect() as connection:
            await connection.send(request(served, "Transfer-Encoding: chunked", method="POST", body=b"ffffff\r\n" + b"x" * 100_000))
            assert (await connection.answer()).status == 413
            assert await _flood(connection, b"x" * 1024, pause=0.02) == b""


class TestSlowness:
    @pytest.mark.parametrize("sent", [b"", b"GET /api", b"GET /api/ext/x HTTP/1.1\r\nHost: x\r\nX-Half", b"\r\n\r\n\r\n"])
    async def test_unfinished_head__closed(self, served: Served, sent: bytes) -> None:
        async with await served.connect() as connection:
            await connection.send(sent)
            assert await connection.rest() == b""

    async def test_dripping_head__closed(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(b"GET /api/ext/x HTTP/1.1\r\nHost: x\r\n")
            assert await _flood(connection, b"X-A: b\r\n", pause=0.1) == b""

    async def test_dripping_body__bounded(self, served: Served) -> None:
        async with await served.connect() as connection:
            await connection.send(request(served, "Content-Length: 1000", method="POST"))

            async def drip() -> None:
                while True:
                    await connection.send(b"x")
                    await asyncio.sleep(0.1)

            dripping = asyncio.create_task(drip())
            try:
                answer = await connection.answer()
            finally:
                dripping.cancel()
                await asyncio.gather(dripping, return_exceptions=True)
        assert (answer.status, answer.problem["reason"]) == (400, "INVALID_REQUEST")
        assert "0.5 seconds" in answer.problem["detail"]
        assert not served.kit.runner.requests

    async def test_stray_newline_after_a_body__does_not_cut_a_long_call(self, served: Served) -> None:
        async def slow(_: object) -> object:
            await asyncio.sleep(1.0)  # longer than the time for a head
            return completed(body=b"late")

        served.kit.runner.answer = slow
        async with await served.connect() as connection:
            await connection.send(request(served, "Content-Length: 5", method="POST", body=b"hello"))
            await connection.send(b"\r\n")
            answer = await connection.answer()
        assert (answer.status, answer.body) == (200, b"late")

    async def test_caller_gone__execution_cancelled(self, served: Served) -> None:
        async def slow(_: object) -> object:
            await asyncio.sleep(30)
            return completed()

        served.kit.runner.answer = slow
        connection = await served.connect()
        await connection.send(request(served))
        async with asyncio.timeout(10):
            await served.kit.runner.started.wait()
            await connection.aclose()
            await served.kit.runner.cancelled.wait()


async def _flood(connection: RawConnection, data: bytes, *, pause: float = 0.0) -> bytes:
    """Write until the other side has had enough; return what it said. At most 16 MiB, at most ten seconds."""
    received = asyncio.create_task(connection.rest())
    try:
        for _ in range(1000):
            if received.done():
                break
            await connection.send(data)
            await asyncio.sleep(pause)
        else:
            if not received.done() and pause == 0:
                pytest.fail("16 MiB were taken without a word")
    except (ConnectionResetError, BrokenPipeError):
        pass
    return bytes(await received)
