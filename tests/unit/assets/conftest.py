"""The application of the file server without processes and sockets: it asks a catalogue directly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runnerd.assets.app import AssetsApp
from runnerd.assets.catalogue import Catalogue
from runnerd.assets.channel import Frame
from runnerd.assets.content import OpenFiles
from runnerd.assets.headers import frame_ancestors
from runnerd.assets.lookup import Asker, Lookup
from runnerd.assets.paths import AssetPath
from tests.fakes.interface_files import EXTENSION, HASH, InterfaceShelf


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class DirectAsker(Asker):
    """Puts questions to a catalogue in this process."""

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__()
        self._catalogue = catalogue
        self.questions: list[dict[str, Any]] = []

    async def ask(self, **question: Any) -> tuple[Frame, int | None]:
        self.questions.append(question)
        extension, content_hash = question["extension"], question["hash"]
        if question["op"] == "open":
            return {}, await self._catalogue.open(extension, content_hash, question["path"])
        if question["known"]:
            await self._catalogue.find(extension, content_hash)
            return {}, None
        return {}, await self._catalogue.index(extension, content_hash)


class FakeTransport:
    """Records what a protocol does to its connection."""

    def __init__(self) -> None:
        self.aborted = False
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing or self.aborted

    def abort(self) -> None:
        self.aborted = True


@dataclass(slots=True)
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False
    transport: FakeTransport = field(default_factory=FakeTransport)


@dataclass(slots=True)
class Harness:
    shelf: InterfaceShelf
    clock: Clock
    asker: DirectAsker
    app: AssetsApp
    corrupt: list[AssetPath]
    on_send: Callable[[Reply], None] = lambda reply: None

    async def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        return await self.request(f"/ext-ui/{EXTENSION}/{HASH}/{path}", method, **headers)

    async def request(self, raw_path: str, method: str = "GET", **headers: str) -> Reply:
        reply = Reply()
        raw, _, query = raw_path.partition("?")
        fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "method": method,
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "headers": fields,
            "state": {"transport": reply.transport},
        }

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = [name.decode() for name, _ in message["headers"]]
                assert len(names) == len(set(names)), names
                reply.status = message["status"]
                reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                reply.body += message.get("body", b"")
                reply.complete = not message.get("more_body", False)
                self.on_send(reply)

        async def receive() -> Any:
            raise AssertionError

        await self.app(scope, receive, send)
        return reply


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def harness(tmp_path: Path, clock: Clock) -> Harness:
    shelf = InterfaceShelf(tmp_path / "ui")
    shelf.root.mkdir()
    asker = DirectAsker(Catalogue(resolve=shelf.resolve, root=shelf.root, clock=clock))
    corrupt: list[AssetPath] = []
    app = AssetsApp(
        lookup=Lookup(asker, clock=clock),
        files=OpenFiles(),
        frame_ancestors=frame_ancestors(["https://host.example"]),
        report_corrupt=corrupt.append,
    )
    return Harness(shelf, clock, asker, app, corrupt)
