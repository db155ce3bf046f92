"""Bundles for tests: good ones, and raw archives in which every byte can be wrong.

manifest(**changes)            a small valid manifest as a document; None removes a field
files(**changes)               the files of a small valid bundle, by name ("dist/main.wasm", …)
make_bundle(version="1.0.0")   the packed bytes of one
Header(name, …).block()        a tar header, canonical unless told otherwise
archive(*members)              headers and contents → tar bytes with their end
compress(tar, …)               tar bytes → one zstd frame, canonical unless told otherwise
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backports.zstd import CompressionParameter, ZstdCompressor

from registry.bundles.packing import pack_files

COMPONENT = b"\0asm\x0d\0\x01\0"
"""The smallest component: its preamble."""


def manifest(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": "com.example.notes",
        "publisher": "example",
        "version": "1.0.0",
        "runtime": "wasm-component@1",
        "capabilities": ["cap:storage.kv"],
        "api": {"endpoints": [{"method": "GET", "path": "/notes/:id", "handler": "get_note"}]},
        "ui": {"type": "iframe", "entry": "ui/index.html", "hooks": {"appMenu": {"label": "Notes"}}},
    }
    document.update(changes)
    return {key: value for key, value in document.items() if value is not None}


def manifest_bytes(**changes: Any) -> bytes:
    return json.dumps(manifest(**changes)).encode()


def files(changes: Mapping[str, bytes | None] | None = None, **manifest_changes: Any) -> dict[str, bytes]:
    wanted: dict[str, bytes | None] = {
        "manifest.json": manifest_bytes(**manifest_changes),
        "dist/main.wasm": COMPONENT,
        "ui/index.html": b"<!doctype html><title>Notes</title>",
        **(changes or {}),
    }
    return {name: content for name, content in wanted.items() if content is not None}


def make_bundle(changes: Mapping[str, bytes | None] | None = None, **manifest_changes: Any) -> bytes:
    # Packing costs 10 ms, and property tests want the same one hundreds of times.
    return pack_files(files(changes, **manifest_changes)) if changes or manifest_changes else _plain_bundle()


@functools.cache
def _plain_bundle() -> bytes:
    return pack_files(files())


@dataclass(frozen=True, kw_only=True)
class Header:
    """A tar header, canonical by default; written without the product's writer."""

    name: str | bytes
    size: int = 0
    kind: bytes | None = None
    mode: bytes | None = None
    prefix: bytes = b""
    link: bytes = b""
    magic: bytes = b"ustar\x0000"
    raw_size: bytes | None = None
    mtime: bytes = b"00000000000\0"
    owner: bytes = b"0000000\0"
    owner_name: bytes = b""
    devices: bytes = b"0000000\x000000000\0"
    tail: bytes = b""

    def block(self) -> bytes:
        name = self.name.encode() if isinstance(self.name, str) else self.name
        folder = name.endswith(b"/")
        kind = self.kind if self.kind is not None else (b"5" if folder else b"0")
        mode = self.mode if self.mode is not None else (b"0000755\0" if folder else b"0000644\0")
        size = self.raw_size if self.raw_size is not None else b"%011o\0" % self.size
        fields = (
            name.ljust(100, b"\0")[:100]
            + mode
            + self.owner * 2
            + size
            + self.mtime
            + b" " * 8
            + kind
            + self.link.ljust(100, b"\0")
            + self.magic
            + self.owner_name.ljust(32, b"\0")
            + bytes(32)
            + self.devices
            + self.prefix.ljust(155, b"\0")
            + self.tail.ljust(12, b"\0")
        )
        checksum = b"%06o\0 " % sum(fields)
        return fields[:148] + checksum + fields[156:]


def member(header: Header, content: bytes = b"") -> bytes:
    return header.block() + content + bytes(-len(content) % 512)


def file(name: str | bytes, content: bytes = b"", **changes: Any) -> bytes:
    return member(Header(name=name, **({"size": len(content)} | changes)), content)


def archive(*members: bytes, end: bytes = bytes(1024)) -> bytes:
    return b"".join(members) + end


def good_members(*, ui: bytes = b"<p>", **manifest_changes: Any) -> list[bytes]:
    """The members of a small valid archive, in order; between them a test puts what is wrong."""
    return [
        file("dist/"),
        file("dist/main.wasm", COMPONENT),
        file("manifest.json", manifest_bytes(**manifest_changes)),
        file("ui/"),
        file("ui/index.html", ui),
    ]


def compress(
    tar: bytes,
    *,
    level: int = 19,
    checksum: bool = True,
    content_size: bool = True,
    window_log: int = 23,
    pledge: bool = True,
) -> bytes:
    compressor = ZstdCompressor(
        options={
            CompressionParameter.compression_level: level,
            CompressionParameter.window_log: window_log,
            CompressionParameter.content_size_flag: int(content_size),
            CompressionParameter.checksum_flag: int(checksum),
        }
    )
    if pledge:
        compressor.set_pledged_input_size(len(tar))
        return compressor.compress(tar, ZstdCompressor.FLUSH_FRAME)
    return compressor.compress(tar) + compressor.flush()
