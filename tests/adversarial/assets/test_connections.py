"""What strangers do to a listener: nothing at all, half of something, too much of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnerd.assets import protocol
from runnerd.assets.app import AssetsApp
from runnerd.assets.catalogue import Catalogue
from runnerd.assets.channel import Channel, Frame
from runnerd.assets.content import OpenFiles
from runnerd.assets.lookup import Asker, Lookup
from runnerd.assets.protocol import Listener
from tests.fakes.interface_files import EXTENSION, HASH, InterfaceShelf

SMALL = b"console.log(1)"
LARGE = bytes(8 * 1024 * 1024)
MAX_CONNECTIONS = 8


class CatalogueAsker(Asker):
    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__()
        self._catalogue = catalogue

    async def ask(self, **question: object) -> tuple[Frame, int | None]:
        names = str(question["extension"]), str(question["hash"])
        if question["op"] == "open":
            return {}, await self._catalogue.open(*names, str(question["path"]))
        return {}, await self._catalogue.index(*names)


@pytest.fixture
async def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.3)
    shelf = InterfaceShelf(tmp_path / "ui")
    shelf.root.mkdir()
    shelf.put({"a.js": SMALL, "large.bin": LARGE})
    lookup = Lookup(CatalogueAsker(Catalogue(resolve=shelf.resolve, root=shelf.root)))
    app = AssetsApp(lookup=lookup, files=OpenFiles(), frame_ancestors="'none'", report_corrupt=lambda asset: None)
    name = str(tmp_path / "s")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(name)
    sock.listen(100)
    listener = Listener(sock, app, max_connections=MAX_CONNECTIONS, frame_ancestors="'none'")
    listener.start()
    yield name
    await listener.aclose(grace_seconds=0.1)
    await asyncio.sleep(0)


def request(path: str = "a.js", extra: bytes = b"") -> bytes:
    return f"GET /ext-ui/{EXTENSION}/{HASH}/{path} HTTP/1.1\r\nhost: x\r\n".encode() + extra + b"\r\n"


async def ends(reader: asyncio.StreamReader) -> bytes:
    """Read until the server closes; a reset counts as closed."""
    try:
        return await asyncio.wait_for(reader.read(-1), 20)
    except ConnectionError:
        return b""


async def is_served(address: str) -> bool:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(request(extra=b"connection: close\r\n"))
    reply = await ends(reader)
    writer.close()
    return reply.startswith(b"HTTP/1.1 200") and reply.endswith(SMALL)


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /ext-ui/x HTTP/1.1\r\n", request()[:-2], b"\r\n\r\n"])
async def test_unfinished_request__is_cut(address: str, sent: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(sent)
    await ends(reader)
    writer.close()


async def test_slow_loris__byte_by_byte__is_cut_although_bytes_keep_coming(address: str) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    sent = 0
    for byte in request(extra=b"x: " + b"a" * 4_000 + b"\r\n"):
        try:
            writer.write(bytes([byte]))
            await writer.drain()
        except ConnectionError:
            break
        sent += 1
        await asyncio.sleep(0.01)
    assert sent < 4_000
    await ends(reader)
    writer.close()


async def test_second_request__has_its_own_clock(address: str) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(request())
    assert b"200" in await reader.readline()
    writer.write(request()[:20])
    assert SMALL in await ends(reader)
    writer.close()


async def test_many_idle_connections__make_room_for_one_that_asks(address: str) -> None:
    idle = [await asyncio.open_unix_connection(address) for _ in range(3 * MAX_CONNECTIONS)]
    assert await is_served(address)
    for _, writer in idle:
        writer.close()


async def test_many_readers_that_stop__are_cut_and_room_is_made(address: str) -> None:
    stopped = []
    for _ in range(2 * MAX_CONNECTIONS):
        reader, writer = await asyncio.open_unix_connection(address, limit=1_024)
        writer.write(request("large.bin"))
        stopped.append((reader, writer))
    assert await asyncio.wait_for(is_served(address), 20)
    for _, writer in stopped:
        writer.close()


async def test_many_readers_that_stop__make_room_at_once_for_one_that_asks(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 3_600)
    stopped = []
    for _ in range(2 * MAX_CONNECTIONS):
        reader, writer = await asyncio.open_unix_connection(address, limit=1_024)
        writer.write(request("large.bin"))
        await reader.readline()
        stopped.append((reader, writer))
    assert await asyncio.wait_for(is_served(address), 20)
    for _, writer in stopped:
        writer.close()


async def test_reader_that_keeps_up__gets_the_whole_file(address: str) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(request("large.bin", b"connection: close\r\n"))
    reply = await ends(reader)
    assert reply.endswith(b"\r\n\r\n" + LARGE)
    writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"a" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 3_000, b"431"),
        (request(extra=b"x: y\r\n" * 64), b"431"),
        (request(extra=b"x: " + b"a" * 16_384 + b"\r\n"), b"431"),
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET http:// HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"GET /ext-ui/\xff HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
    ],
)
async def test_head_that_cannot_be__is_a_problem_and_closes(address: str, sent: bytes, status: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(sent)
    reply = await ends(reader)
    writer.close()
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"cache-control: no-store" in head
    assert b"x-content-type-options: nosniff" in head
    assert b'"reason"' in body


async def test_head_of_the_largest_size__is_read(address: str) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(request(extra=b"x: y\r\n" * 61 + b"z: " + b"a" * 15_000 + b"\r\nconnection: close\r\n"))
    assert (await ends(reader)).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_pipelined_requests__a_few_are_answered_and_many_are_cut(address: str) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(request() * 4 + request(extra=b"connection: close\r\n"))
    assert (await ends(reader)).count(SMALL) == 5
    writer.close()
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(request() * 500)
    assert (await ends(reader)).count(SMALL) < 500
    writer.close()
    assert await is_served(address)


@pytest.mark.parametrize("framing", [b"content-length: 10000000\r\n", b"transfer-encoding: chunked\r\n"])
async def test_body__is_not_read(address: str, framing: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(request(extra=framing))
    head = await reader.readline()
    assert b" 400 " in head
    assert b"connection: close" in await ends(reader)
    writer.close()


async def test_smuggled_second_request__both_framings__is_refused(address: str) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(request(extra=b"content-length: 4\r\ntransfer-encoding: chunked\r\n") + b"0\r\n\r\n" + request())
    reply = await ends(reader)
    assert SMALL not in reply
    writer.close()


async def test_upgrade__is_ignored(address: str) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(request(extra=b"connection: upgrade, close\r\nupgrade: websocket\r\n"))
    assert b"101" not in (await ends(reader))[:20]
    writer.close()


async def test_channel__end_of_file__is_noticed_while_requests_run(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    closed = asyncio.Event()
    channel = Channel(ours, on_frame=lambda frame, descriptor: None, on_closed=closed.set)
    theirs.close()
    await asyncio.wait_for(closed.wait(), 10)
    channel.close()
