"""A host platform on loopback: real HTTP/1.1, written by hand so that it can also behave as no library would let it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

INSTALL_ROUTE = "/api/internal/ext-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case; a name that came twice fails the test."""
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


Answer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def response(status: int, body: bytes = b"", *headers: tuple[str, str], length: bool = True) -> bytes:
    fields = [*headers, *([("content-length", str(len(body)))] if length else [])]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode("latin-1") + body


def saying(status: int, body: bytes = b"", *headers: tuple[str, str]) -> Answer:
    return raw(response(status, body, *headers))


def document(status: int, content: object) -> Answer:
    return saying(status, json.dumps(content).encode(), ("content-type", "application/json"))


def raw(data: bytes, *, close: bool = False) -> Answer:
    async def answer(_received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return answer


@dataclass(slots=True)
class FakePlatform:
    """Answers as `answer` says; remembers what it was asked and over which connection."""

    port: int = 0
    scheme: str = "http"
    answer: Answer = field(default_factory=lambda: saying(200, b"{}"))
    received: list[Received] = field(default_factory=list)
    connections: list[list[Received]] = field(default_factory=list)
    connected: int = 0
    """Connections that stand."""
    open: int = 0
    most_open: int = 0
    """Requests that waited for an answer at once."""

    @property
    def base_url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def last(self) -> Received:
        return self.received[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: list[Received] = []
        self.connections.append(mine)
        self.connected += 1
        try:
            await self._serve(mine, reader, writer)
        finally:
            self.connected -= 1

    async def _serve(self, mine: list[Received], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while not writer.is_closing():
                received = await _read(reader)
                self.received.append(received)
                mine.append(received)
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                try:
                    await self.answer(received, writer)
                finally:
                    self.open -= 1
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1")
    first, *lines = head.split("\r\n")
    method, target, _version = first.split(" ")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        assert name.lower() not in headers, "a header came twice"
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method=method, target=target, headers=headers, body=body)


@asynccontextmanager
async def fake_platform(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakePlatform]:
    """Serve on a port of the system's choice; nothing is left when the block ends."""
    platform = FakePlatform(scheme="http" if tls is None else "https")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await platform.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            tasks.discard(task)
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=64 * 1024, ssl=tls)
    platform.port = server.sockets[0].getsockname()[1]
    try:
        yield platform
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tuple(tasks))
        await server.wait_closed()
