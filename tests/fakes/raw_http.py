"""A TCP connection that sends exactly the bytes a test writes, for requests that no HTTP client would send."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Self

_PATIENCE_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RawAnswer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        return values[0] if values else None


@dataclass(slots=True)
class RawConnection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    closed: bool = field(default=False)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head: bool = False) -> RawAnswer:
        """Read one response; fails if the connection ends before."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            raw = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = raw[:-4].decode("latin-1").split("\r\n")
            headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
            fields = dict(headers)
            if head or fields.get("content-length") == "0" or first.split(" ")[1] in {"204", "304"}:
                body = b""
            elif "content-length" in fields:
                body = await self.reader.readexactly(int(fields["content-length"]))
            else:
                body = await self.reader.read()
        return RawAnswer(status=int(first.split(" ")[1]), headers=headers, body=body)

    async def rest(self) -> bytes:
        """Read until the other side closes."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def aclose(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionResetError, BrokenPipeError):
            return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def connect(host: str, port: int) -> RawConnection:
    reader, writer = await asyncio.open_connection(host, port, limit=64 * 1024 * 1024)
    return RawConnection(reader, writer)
