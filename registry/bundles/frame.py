"""Reads the one zstd frame that a bundle is, with bounded memory.

Attack: a frame can ask for a window of gigabytes, for a dictionary, or hide its length; a file can hold further frames
and skippable ones, which decoders silently join or drop, so that two programs see two contents under one hash (T24, N29).
The frame header is therefore checked by hand before the decoder sees a byte.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO, Protocol

from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

from registry.bundles.layout import BundleLimits, refuse, refused
from registry.domain.digests import ContentHash, from_hex
from registry.domain.limits import MIB

MAX_WINDOW_BYTES = 8 * MIB
_MAX_WINDOW_LOG = 23

_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGIC = 0x184D2A50
_SKIPPABLE_MASK = 0xFFFFFFF0
_CHUNK = 64 * 1024

# RFC 8878 §3.1.1.1.1: the bits of Frame_Header_Descriptor.
_SINGLE_SEGMENT = 0x20
_UNUSED_AND_RESERVED = 0x18
_CHECKSUM = 0x04
_DICTIONARY_ID = 0x03
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)
_TWO_BYTE_OFFSET = 256


class ByteSource(Protocol):
    """Anything with `read`, for example a file opened in binary mode."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; nothing at the end."""
        ...


class HashingReader:
    """Passes bytes on and hashes them, so that what is hashed is what is used (T31).

    Args:
        source: where the bytes come from, at their beginning.
        max_bytes: more than this is refused.
    """

    def __init__(self, source: ByteSource | BinaryIO, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self.count = 0
        """Bytes passed on so far."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; nothing at the end.

        Raises:
            RefusalError: INVALID_BUNDLE when the source is longer than `max_bytes`.
        """
        data = self._source.read(size)
        self.count += len(data)
        if self.count > self._max_bytes:
            refuse(f"the archive is longer than {self._max_bytes} bytes")
        self._digest.update(data)
        return data

    def drain(self) -> None:
        """Read the rest, so that the hash is that of everything."""
        while self.read(_CHUNK):
            pass

    @property
    def content_hash(self) -> ContentHash:
        """Hash of what was passed on so far."""
        return from_hex(self._digest.hexdigest())


class FrameReader:
    """Reads the content of the single zstd frame that `source` must be.

    Args:
        source: the archive, at its beginning.
        limits: the content may be `limits.unpacked_bytes` long at most, by the frame's own word.

    Raises:
        RefusalError: INVALID_BUNDLE if the frame's header is not one that the packer writes.
    """

    def __init__(self, source: ByteSource, limits: BundleLimits) -> None:
        self._source = source
        header, self.content_size = _read_header(source, limits)
        self._decoder = ZstdDecompressor(options={DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})
        self._pending = header
        self._left = self.content_size

    @property
    def left(self) -> int:
        """Bytes of content that were not read yet."""
        return self._left

    def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes of content.

        Raises:
            RefusalError: INVALID_BUNDLE if there are fewer, or if the frame is damaged.
        """
        if size > self._left:
            refuse("the archive ends too early")
        parts: list[bytes] = []
        missing = size
        while missing:
            part = self._decode(missing)
            parts.append(part)
            missing -= len(part)
        self._left -= size
        return b"".join(parts)

    def finish(self) -> None:
        """Check that the frame, its checksum and the source end here.

        Raises:
            RefusalError: INVALID_BUNDLE.
        """
        if self._left:
            refuse("bytes follow the end of the archive")
        while not self._decoder.eof:
            if self._decode(1):
                refuse("the frame is longer than it says")
        if self._decoder.unused_data or self._pending or self._source.read(1):
            refuse("bytes follow the zstd frame; an archive is exactly one frame")

    def _decode(self, size: int) -> bytes:
        """Return up to `size` bytes; nothing only where the decoder still swallows input or the frame is at its end."""
        if self._decoder.eof:
            refuse("the frame is shorter than it says")
        data = b""
        if self._decoder.needs_input:
            data, self._pending = self._pending or self._source.read(_CHUNK), b""
            if not data:
                refuse("the archive is cut short")
        try:
            return self._decoder.decompress(data, max_length=size)
        except ZstdError as exc:
            problem = "the zstd frame is damaged"
            raise refused(problem) from exc


def _read_header(source: ByteSource, limits: BundleLimits) -> tuple[bytes, int]:
    """Read and check a frame header; return its bytes and the size of the content."""
    start = _take(source, 5)
    magic = int.from_bytes(start[:4], "little")
    if magic & _SKIPPABLE_MASK == _SKIPPABLE_MAGIC:
        refuse("skippable zstd frames are not accepted")
    if magic != _MAGIC:
        refuse("it is no zstd frame")
    descriptor = start[4]
    if descriptor & _DICTIONARY_ID:
        refuse("zstd dictionaries are not accepted")
    if descriptor & _UNUSED_AND_RESERVED or not descriptor & _CHECKSUM:
        refuse("the zstd frame has no checksum or uses reserved bits; pack the folder with extctl")
    single_segment = bool(descriptor & _SINGLE_SEGMENT)
    size_bytes = _CONTENT_SIZE_BYTES[descriptor >> 6] or int(single_segment)
    if not size_bytes:
        refuse("the zstd frame does not tell the size of its content; pack the folder with extctl")
    rest = _take(source, size_bytes + (not single_segment))
    content_size = int.from_bytes(rest[-size_bytes:], "little") + (_TWO_BYTE_OFFSET if size_bytes == 2 else 0)  # noqa: PLR2004
    window = content_size if single_segment else _window(rest[0])
    if window > MAX_WINDOW_BYTES:
        refuse(f"the zstd window is larger than {MAX_WINDOW_BYTES} bytes")
    if content_size > limits.unpacked_bytes:
        refuse(f"it unpacks to more than {limits.unpacked_bytes} bytes")
    return start + rest, content_size


def _window(descriptor: int) -> int:
    base = 1 << (10 + (descriptor >> 3))
    return base + (base >> 3) * (descriptor & 7)


def _take(source: ByteSource, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = source.read(size - len(data))
        if not part:
            refuse("it is no zstd frame")
        data += part
    return data
