"""A guest against the browser of whoever reads its answer (T14)."""

from __future__ import annotations

import pytest

from tests.adversarial.gateway.conftest import Served
from tests.fakes.fake_runner import completed
from tests.fakes.gateway_kit import EXTENSION
from tests.fakes.raw_http import RawAnswer

SCRIPT = b"<html><script>fetch('/api/admin/v1/installs')</script></html>"


async def answer_to(served: Served, *headers: tuple[str, str], body: bytes = SCRIPT) -> RawAnswer:
    served.kit.runner.answer = completed(headers=headers, body=body)
    async with await served.connect() as connection:
        head = f"GET /api/ext/{EXTENSION}/page HTTP/1.1\r\nHost: x\r\nAuthorization: {served.kit.bearer()['authorization']}\r\n\r\n"
        await connection.send(head.encode())
        return await connection.answer()


@pytest.mark.parametrize("content_type", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/javascript", "text/xml"])
async def test_active_content__sandboxed_and_saved(served: Served, content_type: str) -> None:
    answer = await answer_to(served, ("content-type", content_type), ("content-disposition", "inline"))
    assert answer.status == 200
    assert answer.header("content-disposition") == "attachment"
    assert answer.header("content-security-policy") == "sandbox; default-src 'none'; frame-ancestors 'none'"
    assert answer.header("x-content-type-options") == "nosniff"
    assert answer.header("cross-origin-resource-policy") == "same-origin"
    assert answer.header("cache-control") == "no-store"


async def test_no_type__not_guessed(served: Served) -> None:
    answer = await answer_to(served)
    assert answer.header("content-type") == "application/octet-stream"
    assert answer.header("x-content-type-options") == "nosniff"


async def test_cookies_and_policies__never_come_through(served: Served) -> None:
    answer = await answer_to(
        served,
        ("set-cookie", "__Host-session=stolen; Path=/; Secure"),
        ("Set-Cookie", "a=b"),
        ("access-control-allow-origin", "*"),
        ("access-control-allow-credentials", "true"),
        ("content-security-policy", "script-src *"),
        ("clear-site-data", '"*"'),
        ("service-worker-allowed", "/"),
        ("refresh", "0;url=https://evil.example"),
        ("link", "</x>; rel=preload"),
        ("location", "https://evil.example/"),
    )
    names = [name for name, _ in answer.headers]
    forbidden = {
        "set-cookie",
        "access-control-allow-origin",
        "access-control-allow-credentials",
        "clear-site-data",
        "service-worker-allowed",
        "refresh",
        "link",
        "location",
    }
    assert not forbidden & set(names)
    assert names.count("content-security-policy") == 1


@pytest.mark.parametrize("value", ["a\r\nset-cookie: x=1", "a\nb", "a\x00"])
async def test_header_splitting__502(served: Served, value: str) -> None:
    answer = await answer_to(served, ("x-ext-a", value))
    assert (answer.status, answer.problem["reason"]) == (502, "GUEST_INVALID_RESPONSE")
    assert answer.header("set-cookie") is None


async def test_lying_length__does_not_shift_the_next_answer(served: Served) -> None:
    served.kit.runner.answer = completed(
        headers=(("content-length", "1"), ("transfer-encoding", "chunked")), body=b"HTTP/1.1 200 OK\r\n\r\n"
    )
    head = f"GET /api/ext/{EXTENSION} HTTP/1.1\r\nHost: x\r\nAuthorization: {served.kit.bearer()['authorization']}\r\n\r\n".encode()
    async with await served.connect() as connection:
        for _ in range(2):
            await connection.send(head)
            answer = await connection.answer()
            assert (answer.status, answer.body) == (200, b"HTTP/1.1 200 OK\r\n\r\n")


@pytest.mark.parametrize("status", [204, 304])
async def test_body_with_a_bodiless_status__not_sent(served: Served, status: int) -> None:
    served.kit.runner.answer = completed(status, body=b"HTTP/1.1 200 OK\r\n\r\n")
    head = f"GET /api/ext/{EXTENSION} HTTP/1.1\r\nHost: x\r\nAuthorization: {served.kit.bearer()['authorization']}\r\n\r\n".encode()
    async with await served.connect() as connection:
        await connection.send(head)
        assert (await connection.answer()).status == status
        served.kit.runner.answer = completed(body=b"next")
        await connection.send(head)
        assert (await connection.answer()).body == b"next"
