"""The assets server as the daemon runs it: a real child, a real port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvloop

from registry.domain.errors import Reason, RefusalError
from runnerd.assets import supervisor
from runnerd.assets.supervisor import AssetsServer, AssetsStartError
from runnerd.children import keeper
from tests.fakes.assets_server import is_alive, serving, until, url
from tests.fakes.interface_files import EXTENSION, HASH, InterfaceShelf

FILES = {
    "index.html": b"<!doctype html><title>Notes</title><script type=module src=app.js></script>",
    "app.js": b"export const answer = 42",
    "img/logo.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "caf\u00e9 \u4e2d.txt": "größe".encode(),
    "large.bin": os.urandom(3 * 1024 * 1024 + 17),
}


@pytest.fixture
def shelf(tmp_path: Path) -> InterfaceShelf:
    shelf = InterfaceShelf(tmp_path / "ui")
    shelf.put(FILES)
    return shelf


@pytest.fixture
async def running(shelf: InterfaceShelf) -> AsyncIterator[tuple[AssetsServer, httpx.AsyncClient]]:
    async with serving(shelf, frame_ancestors=("https://host.example",)) as pair:
        yield pair


async def test_serving__every_file__arrives_whole_with_its_headers(running: tuple[AssetsServer, httpx.AsyncClient]) -> None:
    _, client = running
    for path, data in FILES.items():
        reply = await client.get(url(path))
        assert (reply.status_code, reply.content) == (200, data), path
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors https://host.example" in reply.headers["content-security-policy"]
        assert "set-cookie" not in reply.headers
        assert "server" not in reply.headers
        assert "date" in reply.headers
    page = await client.get(url("index.html"))
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("sandbox allow-scripts allow-forms; default-src 'none'")
    assert page.headers["cache-control"] == "no-cache"
    assert (await client.get(url("app.js"))).headers["cache-control"] == "public, max-age=31536000, immutable"


async def test_serving__revalidation_and_head__carry_no_body(running: tuple[AssetsServer, httpx.AsyncClient]) -> None:
    _, client = running
    first = await client.get(url("index.html"))
    again = await client.get(url("index.html"), headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    headed = await client.head(url("large.bin"))
    assert (headed.status_code, headed.content) == (200, b"")
    assert headed.headers["content-length"] == str(len(FILES["large.bin"]))


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/execute"), ("GET", "/v1/execute"), ("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/")]
)
async def test_serving__other_doors__do_not_exist(running: tuple[AssetsServer, httpx.AsyncClient], method: str, path: str) -> None:
    _, client = running
    reply = await client.request(method, path, content=b"{}" if method == "POST" else None)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"


async def test_serving__version_disabled_and_denied__stops(running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf) -> None:
    _, client = running
    assert (await client.get(url("app.js"))).status_code == 200

    async def status_becomes(status: int) -> httpx.Response:
        async with asyncio.timeout(30):
            while (reply := await client.get(url("app.js"))).status_code != status:  # noqa: ASYNC110 - another process decides
                await asyncio.sleep(0.1)
            return reply

    kept = shelf.served.pop((EXTENSION, HASH))
    assert (await status_becomes(404)).json()["reason"] == "ASSET_NOT_FOUND"
    shelf.served[EXTENSION, HASH] = kept
    await status_becomes(200)
    shelf.refused[EXTENSION, HASH] = RefusalError(Reason.HASH_DENIED, "This content was revoked.")
    assert (await status_becomes(410)).headers["clear-site-data"] == '"cache"'


async def test_serving__interface_with_very_many_files__works(
    running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf
) -> None:
    _, client = running
    content_hash = "sha256:" + "0" * 64
    interface = shelf.put({"one.js": b"1"}, content_hash=content_hash)
    names = {f"{'x' * 240}{number}.js": interface.files["one.js"] for number in range(10_000)}
    shelf.served[EXTENSION, content_hash] = type(interface)("one.js", names | dict(interface.files))
    assert (await client.get(url(f"{'x' * 240}9999.js", content_hash=content_hash))).content == b"1"


async def test_child__killed__is_replaced_while_connections_wait(running: tuple[AssetsServer, httpx.AsyncClient]) -> None:
    server, client = running
    for number in range(2):
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda pid=pid: server.pid not in {pid, None})  # type: ignore[misc]
        assert (await client.get(url("app.js"))).content == FILES["app.js"]
        assert server.restarts == number + 1


async def test_child__does_not_start_for_a_while__is_tried_again(
    running: tuple[AssetsServer, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = running
    monkeypatch.setattr(keeper, "BACKOFF_LAST_SECONDS", 0.2)
    tries = 0
    command = AssetsServer._command

    def failing(self: AssetsServer, *descriptors: int) -> list[str]:
        nonlocal tries
        tries += 1
        return [sys.executable, "-c", "raise SystemExit(3)"] if tries < 3 else command(self, *descriptors)

    monkeypatch.setattr(AssetsServer, "_command", failing)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await until(lambda: server.is_serving and tries >= 3)
    assert (await client.get(url("app.js"))).content == FILES["app.js"]


async def test_start__child_ends_at_once__says_so_and_frees_the_port(shelf: InterfaceShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AssetsServer, "_command", lambda self, *descriptors: [sys.executable, "-c", "raise SystemExit(3)"])
    server = AssetsServer(host="127.0.0.1", port=0, root=shelf.root, resolve=shelf.resolve, require_hardening=True)
    with pytest.raises(AssetsStartError, match="exit status 3"):
        await server.start()
    await server.aclose()
    assert not server.is_serving


async def test_start__child_fails__its_last_words_are_logged(shelf: InterfaceShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(supervisor, "_say", said.append)
    monkeypatch.setattr(AssetsServer, "_command", lambda self, *descriptors: [sys.executable, "-c", "raise SystemExit('no room')"])
    server = AssetsServer(host="127.0.0.1", port=0, root=shelf.root, resolve=shelf.resolve, require_hardening=True)
    with pytest.raises(AssetsStartError, match="exit status 1"):
        await server.start()
    assert said == ["no room"]


async def test_start__port_taken__says_so(shelf: InterfaceShelf) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = AssetsServer(host="127.0.0.1", port=port, root=shelf.root, resolve=shelf.resolve, require_hardening=True)
        with pytest.raises(AssetsStartError, match=f"port {port}"):
            await server.start()
        await server.aclose()


async def test_port__before_start__is_an_error(shelf: InterfaceShelf) -> None:
    server = AssetsServer(host="127.0.0.1", port=0, root=shelf.root, resolve=shelf.resolve, require_hardening=True)
    with pytest.raises(AssetsStartError):
        assert server.port


async def test_frame_ancestors__malformed__are_refused_before_anything_starts(shelf: InterfaceShelf) -> None:
    with pytest.raises(RefusalError):
        AssetsServer(
            host="127.0.0.1", port=0, root=shelf.root, resolve=shelf.resolve, require_hardening=True, frame_ancestors=("https://a; x",)
        )


async def test_aclose__answer_under_way__ends_and_the_child_is_gone(shelf: InterfaceShelf) -> None:
    shelf.put({"large.bin": bytes(32 * 1024 * 1024)})
    async with serving(shelf) as (server, client):
        pid = server.pid
        assert pid is not None
        async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as other:
            assert (await other.get(url("app.js"))).status_code == 404
        async with client.stream("GET", url("large.bin")) as reply:
            chunks = reply.aiter_bytes()
            size = len(await anext(chunks))
            closing = asyncio.ensure_future(server.aclose())
            async for chunk in chunks:
                size += len(chunk)
            await closing
        assert size == 32 * 1024 * 1024
        assert not is_alive(pid)


def test_serving__on_the_daemons_event_loop__works_and_survives_a_killed_child(shelf: InterfaceShelf) -> None:
    async def fetch_twice() -> list[bytes]:
        async with serving(shelf) as (server, client):
            first = (await client.get(url("large.bin"))).content
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda: server.pid not in {pid, None})
            return [first, (await client.get(url("large.bin"))).content]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(fetch_twice()) == [FILES["large.bin"]] * 2


async def test_daemon_killed__child_dies_with_it(shelf: InterfaceShelf) -> None:
    program = f"""
        import asyncio, pathlib
        from runnerd.assets.supervisor import AssetsServer

        async def nothing(extension, content_hash):
            return None

        async def main():
            server = AssetsServer(host="127.0.0.1", port=0, root=pathlib.Path({str(shelf.root)!r}), resolve=nothing, require_hardening=True)
            await server.start()
            print(server.pid, flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True) as daemon:  # noqa: ASYNC220
        assert daemon.stdout is not None
        child = int(await asyncio.to_thread(daemon.stdout.readline))
        assert is_alive(child)
        daemon.kill()
    await until(lambda: not is_alive(child))
