"""Interfaces for tests of the file server: files on disk under their digests, an index, and a `resolve` that counts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry.domain.errors import RefusalError

EXTENSION = "com.example.notes"
HASH = "sha256:" + "ab" * 32
OTHER_HASH = "sha256:" + "cd" * 32


@dataclass(frozen=True, slots=True)
class FakeFile:
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class FakeInterface:
    entry: str | None
    files: Mapping[str, FakeFile]


@dataclass(slots=True)
class InterfaceShelf:
    """What a registry and a loader would know: put, take away, refuse."""

    root: Path
    served: dict[tuple[str, str], FakeInterface] = field(default_factory=dict)
    refused: dict[tuple[str, str], RefusalError] = field(default_factory=dict)
    resolved: list[tuple[str, str]] = field(default_factory=list)
    delay_seconds: float = 0.0

    def put(
        self, files: Mapping[str, bytes], *, entry: str | None = "index.html", extension: str = EXTENSION, content_hash: str = HASH
    ) -> FakeInterface:
        facts: dict[str, FakeFile] = {}
        for path, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            place = self.place(digest)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            facts[path] = FakeFile(digest, len(data))
        interface = FakeInterface(entry, facts)
        self.served[extension, content_hash] = interface
        return interface

    def place(self, digest: str) -> Path:
        return self.root / digest[:2] / digest

    def place_of(self, path: str) -> Path:
        return self.place(self.served[EXTENSION, HASH].files[path].sha256)

    async def resolve(self, extension: str, content_hash: str) -> FakeInterface | None:
        self.resolved.append((extension, content_hash))
        await asyncio.sleep(self.delay_seconds)
        refusal = self.refused.get((extension, content_hash))
        if refusal is not None:
            raise refusal
        return self.served.get((extension, content_hash))
