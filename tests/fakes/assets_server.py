"""A running assets server for tests, and ways to wait for what it does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from runnerd.assets.supervisor import AssetsServer
from tests.fakes.interface_files import EXTENSION, HASH, InterfaceShelf


@asynccontextmanager
async def serving(shelf: InterfaceShelf, **options: Any) -> AsyncIterator[tuple[AssetsServer, httpx.AsyncClient]]:
    """Start a server over `shelf`, and a client whose base is the one interface that tests use."""
    shelf.root.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "root": shelf.root, "resolve": shelf.resolve, "require_hardening": True}
    server = AssetsServer(**settings | options)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30, trust_env=False) as client:
            yield server, client
    finally:
        await server.aclose()


def url(path: str, *, extension: str = EXTENSION, content_hash: str = HASH) -> str:
    return f"/ext-ui/{extension}/{content_hash}/{path}"


async def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    """Wait until `condition` holds; fail after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - it may vanish; a zombie is not alive
        return file.read().rpartition(")")[2].split()[0] != "Z"
