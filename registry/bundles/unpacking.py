"""Reads a bundle, one pass, from one descriptor, accepting only the form that the packer writes (CONTRACT §5).

Attack: 32 KiB that unpack to gigabytes before anything is counted; an archive that the verifier, the unpacker and a
reviewer's tools read differently (T24); bytes that are hashed in one reading and used in another (T31). Every rule is
checked before the payload it speaks of is read, every refusal is `INVALID_BUNDLE` or `INVALID_MANIFEST`, nothing is skipped,
and the hash is taken from the very bytes that were unpacked.

What a sink receives is **unverified until `read_bundle` returns**: write it where nobody looks, and throw it away if it raises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from registry.bundles import ustar
from registry.bundles.frame import ByteSource, FrameReader, HashingReader
from registry.bundles.layout import (
    DEFAULT_LIMITS,
    MANIFEST,
    UI,
    WASM,
    BundleLimits,
    check_contents,
    check_name,
    check_place,
    refuse,
    refused,
)
from registry.bundles.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from registry.bundles.ustar import TarEntry
from registry.domain.digests import ContentHash
from registry.domain.errors import Reason, RefusalError

_CHUNK = 256 * 1024
_WASM_MAGIC = b"\0asm"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFile:
    """One file of a bundle."""

    path: str
    """Name in the archive, for example `ui/index.html`."""
    size: int
    """Bytes."""
    sha256: str
    """64 lower-case hexadecimal digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleContents:
    """What one pass over an archive found. Its existence says that the archive is in canonical form, no more."""

    content_hash: ContentHash
    """Of the bytes that were read, all of them."""
    packed_bytes: int
    unpacked_bytes: int
    """Length of the tar stream."""
    manifest: Manifest
    files: tuple[BundleFile, ...]
    """In the order of the archive: sorted by name."""

    @property
    def wasm(self) -> BundleFile | None:
        """The server code; None for a bundle that is only an interface."""
        return next((file for file in self.files if file.path == WASM), None)

    @property
    def ui_files(self) -> tuple[BundleFile, ...]:
        """The files below `ui/`."""
        return tuple(file for file in self.files if file.path.startswith(UI))


class BundleSink(Protocol):
    """Takes the files of a bundle as they come by."""

    def begin(self, path: str, size: int) -> Callable[[bytes], object] | None:
        """Announce a file; the names were checked. Return what takes its bytes, or None to let them pass."""
        ...

    def end(self, file: BundleFile) -> None:
        """Tell that all bytes of the file begun last were given."""
        ...


class DiscardSink:
    """A sink that keeps nothing: for those who only want to know whether an archive is acceptable, and what it is."""

    def begin(self, path: str, size: int) -> Callable[[bytes], object] | None:
        """Let the bytes pass."""
        del path, size
        return None

    def end(self, file: BundleFile) -> None:
        """Forget the file."""


def read_bundle(
    source: ByteSource,
    sink: BundleSink,
    *,
    expected: ContentHash | None = None,
    limits: BundleLimits = DEFAULT_LIMITS,
) -> BundleContents:
    """Read an archive from its first byte to its last.

    Blocking; memory is bounded by the zstd window (8 MiB), the manifest and the names of the files.

    Args:
        source: the archive, positioned at its beginning.
        sink: receives the files; see the module's warning.
        expected: the hash under which the archive was stored; a difference is told as corruption, whatever else is wrong.
        limits: what it may hold.

    Raises:
        RefusalError: INVALID_BUNDLE or INVALID_MANIFEST with the rule that is broken; BUNDLE_CORRUPT if the archive does not
            have the hash `expected`.
    """
    hashing = HashingReader(source, limits.packed_bytes)
    try:
        contents = _Reading(hashing, sink, limits).run()
    except RefusalError as refusal:
        if expected is not None and _is_other(hashing, expected):
            raise _corrupt(expected) from refusal
        raise
    if expected is not None and contents.content_hash != expected:
        raise _corrupt(expected)
    return contents


def _is_other(hashing: HashingReader, expected: ContentHash) -> bool:
    try:
        hashing.drain()
    except RefusalError:
        return True  # Longer than anything that was ever accepted.
    return hashing.content_hash != expected


def _no_wasm() -> RefusalError:
    return refused("it is no WebAssembly binary", name=WASM)


def _corrupt(expected: ContentHash) -> RefusalError:
    return RefusalError(Reason.BUNDLE_CORRUPT, "The stored archive is not the one that was verified.", metadata={"content_hash": expected})


class _Reading:
    """The state of one pass."""

    def __init__(self, source: HashingReader, sink: BundleSink, limits: BundleLimits) -> None:
        self._source = source
        self._sink = sink
        self._limits = limits
        self._frame = FrameReader(source, limits)
        self._files: list[BundleFile] = []
        self._folders: dict[str, bool] = {}
        """Folders seen, and whether something lies in them."""
        self._collisions: set[str] = set()
        self._last = b""
        self._manifest: bytes | None = None

    def run(self) -> BundleContents:
        while True:
            block = self._frame.read_exactly(ustar.BLOCK)
            if not any(block):
                break
            entry = ustar.decode(block)
            self._check(entry)
            if entry.is_folder:
                self._folders[entry.name] = False
            else:
                self._read_file(entry)
        self._check_end()
        if self._manifest is None:
            refuse(f"it has no {MANIFEST}")
        # Only now, after the frame's checksum: a damaged archive must not be blamed on its manifest.
        manifest = parse_manifest(self._manifest)
        check_contents(manifest, {file.path for file in self._files})
        return BundleContents(
            content_hash=self._source.content_hash,
            packed_bytes=self._source.count,
            unpacked_bytes=self._frame.content_size,
            manifest=manifest,
            files=tuple(self._files),
        )

    def _check(self, entry: TarEntry) -> None:
        """Apply every rule about an entry, before its content is touched."""
        key = check_name(entry.name)
        check_place(entry.name)
        if key in self._collisions:
            refuse("another entry has the same name, or one that differs only by case", name=entry.name)
        raw = entry.name.encode()
        if raw <= self._last:
            refuse("entries are not sorted by name", name=entry.name)
        self._collisions.add(key)
        self._last = raw
        if len(self._collisions) > self._limits.files:
            refuse(f"it holds more than {self._limits.files} files and folders")
        self._check_folder_of(entry)
        self._check_size(entry)

    def _check_folder_of(self, entry: TarEntry) -> None:
        above = entry.name.removesuffix("/").rpartition("/")[0]
        if not above:
            return
        if above + "/" not in self._folders:
            refuse("the folder it lies in has no entry of its own", name=entry.name)
        self._folders[above + "/"] = True

    def _check_size(self, entry: TarEntry) -> None:
        allowed = {MANIFEST: MAX_MANIFEST_BYTES, WASM: self._limits.wasm_bytes}.get(entry.name)
        if allowed is not None and entry.size > allowed:
            refuse(f"it is larger than {allowed} bytes", name=entry.name)
        if entry.name == WASM and entry.size < len(_WASM_MAGIC):
            raise _no_wasm()
        if entry.is_folder and entry.size:
            refuse("a folder has no content", name=entry.name)
        if entry.size + entry.padding + len(ustar.END) > self._frame.left:
            refuse("the archive ends within its content", name=entry.name)

    def _read_file(self, entry: TarEntry) -> None:
        kept: list[bytes] = []
        write = self._sink.begin(entry.name, entry.size)
        digest = hashlib.sha256()
        missing = entry.size
        while missing:
            chunk = self._frame.read_exactly(min(missing, _CHUNK))
            if entry.name == WASM and missing == entry.size and not chunk.startswith(_WASM_MAGIC):
                raise _no_wasm()
            missing -= len(chunk)
            digest.update(chunk)
            if write is not None:
                write(chunk)
            if entry.name == MANIFEST:
                kept.append(chunk)
        if any(self._frame.read_exactly(entry.padding)):
            refuse("the padding after its content is not zero", name=entry.name)
        if entry.name == MANIFEST:
            self._manifest = b"".join(kept)
        file = BundleFile(path=entry.name, size=entry.size, sha256=digest.hexdigest())
        self._sink.end(file)
        self._files.append(file)

    def _check_end(self) -> None:
        if any(self._frame.read_exactly(ustar.BLOCK)):
            refuse("the archive does not end with two zero blocks")
        for folder, used in self._folders.items():
            if not used:
                refuse("an empty folder has no place in a bundle", name=folder)
        self._frame.finish()
