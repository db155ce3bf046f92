"""Packs a folder into a bundle: the same files give the same bytes, on any machine, with the same release of `extctl` (N29).

Sorted entries, no times, no owners, two modes, one zstd frame of the pinned library (level 19, one thread, content size and
checksum on), compressed in one call, because the bytes that zstd writes depend on how its input is cut. A golden test pins the hash
of a sample; a library upgrade that changes it is a new packer version. What is written is read again by the strict reader before anybody
gets to see it, so a bundle that `extctl` packs is one that `publish` accepts.
"""

from __future__ import annotations

import io
import mmap
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from backports.zstd import CompressionParameter, ZstdCompressor

from registry.bundles import ustar
from registry.bundles.layout import DEFAULT_LIMITS, MANIFEST, SBOM, UI, WASM, BundleLimits, check_name, check_place, refuse
from registry.bundles.unpacking import BundleContents, DiscardSink, read_bundle
from registry.bundles.ustar import TarEntry
from registry.domain.digests import ContentHash

PACKER_VERSION = 1
"""Raised when the same folder no longer gives the same bytes."""

_COPY = 1024 * 1024
_COMPRESSION: dict[int, int] = {
    CompressionParameter.compression_level: 19,
    CompressionParameter.window_log: 23,  # 8 MiB, the most that the reader accepts, and what level 19 takes for large input.
    CompressionParameter.content_size_flag: 1,
    CompressionParameter.checksum_flag: 1,
    CompressionParameter.nb_workers: 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBundle:
    """What was packed."""

    contents: BundleContents
    """What the strict reader found in it."""

    @property
    def content_hash(self) -> ContentHash:
        """Hash of the archive."""
        return self.contents.content_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A file to pack: its bytes, or where they are."""

    size: int
    content: bytes | Path


def pack_folder(folder: Path, target: Path, *, limits: BundleLimits = DEFAULT_LIMITS) -> PackedBundle:
    """Pack `manifest.json`, `dist/main.wasm`, `sbom.spdx.json` and everything below `ui/` of a folder.

    What lies beside these (sources, tools) is not looked at. `target` appears whole or not at all, replacing what was there.
    Blocking: level 19 takes about half a second a MiB. Memory is bounded by the size of the result and pages of a temporary file.

    Raises:
        RefusalError: INVALID_BUNDLE or INVALID_MANIFEST, with what to change.
        OSError: the folder cannot be read or the target cannot be written.
    """
    sources = dict(_collect(folder))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("w+b") as packed:
            _pack(sources, packed, limits)
            packed.seek(0)
            contents = read_bundle(packed, DiscardSink(), limits=limits)
            packed.flush()
            os.fsync(packed.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return PackedBundle(contents=contents)


def pack_files(files: Mapping[str, bytes], *, limits: BundleLimits = DEFAULT_LIMITS) -> bytes:
    """Pack files that are in memory, by their names in the archive; the result is what `pack_folder` writes for them.

    Raises:
        RefusalError: INVALID_BUNDLE or INVALID_MANIFEST, with what to change.
    """
    packed = io.BytesIO()
    _pack({name: _Source(size=len(content), content=content) for name, content in files.items()}, packed, limits)
    packed.seek(0)
    read_bundle(packed, DiscardSink(), limits=limits)
    return packed.getvalue()


def _collect(folder: Path) -> Iterator[tuple[str, _Source]]:
    for name in (MANIFEST, WASM, SBOM):
        path = folder / name
        if path.is_symlink() or path.exists():
            yield name, _source(path, name)
    interface = folder / UI
    if interface.is_symlink():
        refuse("it is a link; links are not accepted", name=UI)
    for place, folders, names in os.walk(interface, followlinks=False):
        inner = Path(place)
        for name in (*folders, *names):
            path = inner / name
            archived = path.relative_to(folder).as_posix()
            if path.is_symlink() or name in names:
                yield archived, _source(path, archived)


def _source(path: Path, name: str) -> _Source:
    information = path.lstat()
    if not stat.S_ISREG(information.st_mode):
        refuse("it is no regular file; links, folders of this name and devices are not accepted", name=name)
    return _Source(size=information.st_size, content=path)


def _pack(sources: Mapping[str, _Source], target: BinaryIO, limits: BundleLimits) -> None:
    entries = _entries(sources, limits)
    # A temporary file and not memory: 512 MiB of tar are allowed, and zstd wants to see them in one piece.
    with tempfile.TemporaryFile() as tar:
        for entry in entries:
            tar.write(ustar.encode(entry))
            if not entry.is_folder:
                _copy(sources[entry.name], entry, tar)
                tar.write(bytes(entry.padding))
        tar.write(ustar.END)
        tar.flush()
        with mmap.mmap(tar.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            compressor = ZstdCompressor(options=_COMPRESSION)
            compressor.set_pledged_input_size(len(mapped))
            target.write(compressor.compress(mapped, ZstdCompressor.FLUSH_FRAME))


def _entries(sources: Mapping[str, _Source], limits: BundleLimits) -> list[TarEntry]:
    """Return the files and the folders they lie in, sorted; refuse early what the reader would refuse late."""
    entries = {name: TarEntry(name=name, size=source.size) for name, source in sources.items()}
    for name in sources:
        check_name(name)
        check_place(name)
        above = name.rpartition("/")[0]
        while above:
            entries.setdefault(above + "/", TarEntry(name=above + "/", size=0))
            above = above.rpartition("/")[0]
    if len(entries) > limits.files:
        refuse(f"it holds more than {limits.files} files and folders")
    if sum(ustar.BLOCK + entry.size + entry.padding for entry in entries.values()) + len(ustar.END) > limits.unpacked_bytes:
        refuse(f"it unpacks to more than {limits.unpacked_bytes} bytes")
    return sorted(entries.values(), key=lambda entry: entry.name.encode())


def _copy(source: _Source, entry: TarEntry, target: BinaryIO) -> None:
    if isinstance(source.content, bytes):
        target.write(source.content)
        return
    copied = 0
    with source.content.open("rb") as file:
        while chunk := file.read(_COPY):
            copied += len(chunk)
            target.write(chunk)
    if copied != entry.size:
        refuse("it changed while it was packed; try again", name=entry.name)
