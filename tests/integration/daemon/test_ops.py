"""The operations listener over TCP."""

from __future__ import annotations

import asyncio

from runnerd.http.ops import OpsApp, OpsServer


async def fetch(port: int, request: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1]), answer


def get(path: str, method: str = "GET", *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}Connection: close\r\n\r\n".encode()


async def test_ops_endpoints__answer_and_nothing_else() -> None:
    ready = False

    async def render_metrics() -> bytes:
        return b"extrunner_x 1\n"

    async def is_ready() -> bool:
        return ready

    server = OpsServer(OpsApp(render_metrics=render_metrics, is_ready=is_ready), host="127.0.0.1", port=0)
    port = await server.start()
    try:
        assert (await fetch(port, get("/healthz")))[0] == 200
        assert (await fetch(port, get("/readyz")))[0] == 503
        ready = True
        assert (await fetch(port, get("/readyz")))[0] == 200
        status, answer = await fetch(port, get("/metrics"))
        assert status == 200
        assert b"extrunner_x 1" in answer
        assert b"uvicorn" not in answer
        assert (await fetch(port, get("/metrics", "HEAD")))[1].endswith(b"\r\n\r\n")
        for path in ("/", "/metrics/", "/v1/execute", "/ext-ui/a"):
            assert (await fetch(port, get(path)))[0] == 404
        assert (await fetch(port, get("/metrics", "POST")))[0] == 405
        assert (await fetch(port, b"nonsense\r\n\r\n"))[0] == 400
    finally:
        await server.aclose()


async def test_metrics__with_tokens__need_one_and_the_probes_none() -> None:
    async def render_metrics() -> bytes:
        return b"extrunner_x 1\n"

    async def is_ready() -> bool:
        return True

    old, new = b"o" * 32, b"n" * 32
    server = OpsServer(OpsApp(render_metrics=render_metrics, is_ready=is_ready, tokens=(old, new)), host="127.0.0.1", port=0)
    port = await server.start()
    try:
        for path in ("/healthz", "/readyz"):
            assert (await fetch(port, get(path)))[0] == 200
        for token in (old, new):
            for scheme in ("Bearer", "bearer"):
                status, answer = await fetch(port, get("/metrics", "GET", f"Authorization: {scheme} {token.decode()}"))
                assert status == 200
                assert b"extrunner_x 1" in answer
        good = f"Authorization: Bearer {new.decode()}"
        for headers in (
            (),
            ("Authorization:",),
            ("Authorization: Bearer",),
            (f"Authorization: Basic {new.decode()}",),
            (f"Authorization: {new.decode()}",),
            (f"Authorization: Bearer {'n' * 31}",),
            (f"Authorization: Bearer {'n' * 33}",),
            ("Authorization: Bearer \xff",),
            (good, good),
        ):
            for method in ("GET", "HEAD"):
                status, answer = await fetch(port, get("/metrics", method, *headers))
                assert status == 401, headers
                assert b"extrunner_x" not in answer
                assert b"www-authenticate: Bearer" in answer
    finally:
        await server.aclose()
