"""T31: whoever can write the folder of interface files cannot make the server send a byte that was not verified."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from runnerd.assets.content import CHUNK_BYTES
from runnerd.assets.supervisor import AssetsServer
from tests.fakes.assets_server import serving, until, url
from tests.fakes.interface_files import InterfaceShelf

GOOD = b"console.log('good')"
EVIL = b"console.log('evil')"
LARGE = bytes(3 * CHUNK_BYTES)


@pytest.fixture
def shelf(tmp_path: Path) -> InterfaceShelf:
    shelf = InterfaceShelf(tmp_path / "ui")
    shelf.put({"index.html": b"<p>", "app.js": GOOD, "large.bin": LARGE})
    return shelf


@pytest.fixture
async def running(shelf: InterfaceShelf) -> AsyncIterator[tuple[AssetsServer, httpx.AsyncClient]]:
    async with serving(shelf) as pair:
        yield pair


def is_corrupt(reply: httpx.Response) -> bool:
    return reply.status_code == 502 and reply.json()["reason"] == "BUNDLE_CORRUPT" and reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("data", [EVIL, GOOD + b" ", GOOD[:-1], b""])
async def test_altered_before_the_first_request__is_never_served(
    running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf, data: bytes
) -> None:
    server, client = running
    shelf.place_of("app.js").write_bytes(data)
    assert is_corrupt(await client.get(url("app.js")))
    assert (await client.head(url("app.js"))).status_code == 502
    await until(lambda: server.corrupt_files >= 2)
    assert (await client.get(url("index.html"))).status_code == 200


async def test_written_in_place_between_requests__is_never_served(
    running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf
) -> None:
    server, client = running
    assert (await client.get(url("app.js"))).content == GOOD
    with shelf.place_of("app.js").open("r+b") as file:
        file.write(EVIL)
    assert is_corrupt(await client.get(url("app.js")))
    await until(lambda: server.corrupt_files == 1)
    with shelf.place_of("app.js").open("r+b") as file:
        file.write(GOOD)
    assert (await client.get(url("app.js"))).content == GOOD


async def test_replaced_between_requests__serves_what_was_verified_and_never_the_new_file(
    running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf, tmp_path: Path
) -> None:
    _, client = running
    assert (await client.get(url("app.js"))).content == GOOD
    (tmp_path / "new").write_bytes(EVIL)
    (tmp_path / "new").replace(shelf.place_of("app.js"))
    reply = await client.get(url("app.js"))
    assert reply.content == GOOD or is_corrupt(reply)


@pytest.mark.parametrize("target", ["same bytes", "secret"])
async def test_replaced_by_a_link__is_never_followed(
    running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf, tmp_path: Path, target: str
) -> None:
    _, client = running
    (tmp_path / "t").write_bytes(GOOD if target == "same bytes" else b"key")
    shelf.place_of("app.js").unlink()
    shelf.place_of("app.js").symlink_to(tmp_path / "t")
    assert is_corrupt(await client.get(url("app.js")))


async def test_removed__is_said_to_be_missing_here(running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf) -> None:
    _, client = running
    shelf.place_of("app.js").unlink()
    reply = await client.get(url("app.js"))
    assert (reply.status_code, reply.json()["reason"]) == (503, "BUNDLE_UNAVAILABLE")


@pytest.mark.parametrize("offset", [CHUNK_BYTES, 3 * CHUNK_BYTES - 1])
async def test_altered_behind_the_first_chunk__ends_short_and_without_the_altered_bytes(
    running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf, offset: int
) -> None:
    server, client = running
    assert (await client.get(url("large.bin"))).content == LARGE
    with shelf.place_of("large.bin").open("r+b") as file:
        file.seek(offset)
        file.write(b"\x01")
    got = bytearray()

    async def fetch() -> None:
        async with client.stream("GET", url("large.bin")) as reply:
            async for part in reply.aiter_raw():
                got.extend(part)

    with pytest.raises(httpx.TransportError):
        await fetch()
    assert not any(got)
    assert len(got) < len(LARGE)
    await until(lambda: server.corrupt_files == 1)


async def test_truncated_while_open__is_no_crash(running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf) -> None:
    server, client = running
    pid = server.pid
    assert (await client.get(url("large.bin"))).content == LARGE
    os.truncate(shelf.place_of("large.bin"), 0)
    assert is_corrupt(await client.get(url("large.bin")))
    assert (await client.get(url("app.js"))).content == GOOD
    assert server.pid == pid


async def test_altered__is_written_again_and_served(shelf: InterfaceShelf) -> None:
    async def discard(content_hash: str) -> None:
        shelf.put({"index.html": b"<p>", "app.js": GOOD, "large.bin": LARGE})

    async with serving(shelf, discard=discard) as (server, client):
        shelf.place_of("app.js").write_bytes(EVIL)
        assert is_corrupt(await client.get(url("app.js")))
        await until(lambda: server.corrupt_files == 1 and shelf.place_of("app.js").read_bytes() == GOOD)
        assert (await client.get(url("app.js"))).content == GOOD
