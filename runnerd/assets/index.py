"""The index of one version's interface, as it travels from the daemon to the child: path → digest and size."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runnerd.assets.channel import MAX_INDEX_BYTES

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class IndexedFile(Protocol):
    """One file of an interface."""

    @property
    def sha256(self) -> str:
        """64 lower-case hexadecimal digits; also the file's name on disk."""

    @property
    def size(self) -> int:
        """Bytes."""


class InterfaceFiles(Protocol):
    """What the daemon knows about the interface of a verified bundle (`runnerd.artifacts.loaded.InterfaceIndex` is one)."""

    @property
    def entry(self) -> str | None:
        """Path of the page to begin with."""

    @property
    def files(self) -> Mapping[str, IndexedFile]:
        """Path, relative and without leading slash → file."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Digest and size of one file, as verified at load."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The child's copy of an index."""

    entry: str | None
    files: Mapping[str, FileFacts]


class IndexFormatError(Exception):
    """An index that is too large or not one."""


def encode(interface: InterfaceFiles) -> bytes:
    """Return the bytes of an index.

    Raises:
        IndexFormatError: they would be more than MAX_INDEX_BYTES.
    """
    files = {path: [file.sha256, file.size] for path, file in interface.files.items()}
    data = json.dumps({"entry": interface.entry, "files": files}, ensure_ascii=False, separators=(",", ":")).encode()
    if len(data) > MAX_INDEX_BYTES:
        message = f"an index of {len(data)} bytes"
        raise IndexFormatError(message)
    return data


def decode(data: bytes) -> Index:
    """Read what `encode` wrote.

    Raises:
        IndexFormatError: it is something else.
    """
    try:
        document = json.loads(data)
        files = {path: _facts(facts) for path, facts in document["files"].items()}
        entry = document["entry"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        message = "not an index"
        raise IndexFormatError(message) from exc
    return Index(entry=entry if isinstance(entry, str) else None, files=files)


def _facts(value: Any) -> FileFacts:
    digest, size = value
    if not isinstance(digest, str) or not _DIGEST.match(digest) or type(size) is not int or size < 0:
        message = "not the facts of a file"
        raise ValueError(message)
    return FileFacts(digest, size)
