"""Memory files that nobody can write to any more.

Attack it stops (T1): an artifact is hashed and found genuine, and its bytes are changed before, or while, they are mapped as
native code. A file on disk can be replaced, truncated or written in place by whoever owns the folder; a memory file with all
seals set cannot be changed by anybody, this process and root included, so what was hashed is what runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import weakref

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""Every seal that fixes the content, and the one that fixes the seals."""

_CHUNK_BYTES = 1024 * 1024


class SealError(OSError):
    """A memory file could not be filled, or could not be sealed because somebody still holds it writable."""


class SealedFile:
    """Owns one descriptor of a sealed memory file.

    The descriptor is closed when the last holder lets go of the object; a holder that sends the descriptor elsewhere keeps the
    object until it was sent.
    """

    __slots__ = ("__weakref__", "_descriptor", "_finalizer", "sha256", "size")

    def __init__(self, descriptor: int) -> None:
        """Seal, measure and hash the memory file behind `descriptor`, and own it from now on.

        Hashes the whole file: call it in a thread.

        Raises:
            SealError: it cannot be sealed; the descriptor is closed.
        """
        self._descriptor = descriptor
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        try:
            # SECURITY: sealed before it is hashed, so that what is hashed cannot change any more.
            seal(descriptor)
            self.size = os.fstat(descriptor).st_size
            self.sha256 = digest_of(descriptor)
        except OSError as error:
            self._finalizer()
            message = f"the memory file cannot be sealed: {error.strerror}"
            raise SealError(message) from error

    def fileno(self) -> int:
        """Return the descriptor; valid for as long as this object lives.

        Raises:
            ValueError: it was closed.
        """
        if not self._finalizer.alive:
            message = "the sealed file is closed"
            raise ValueError(message)
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor now. Only for who knows that nobody else holds the object."""
        self._finalizer()


def new_memory_file(name: str) -> int:
    """Create an empty, sealable memory file that no child inherits; `name` shows only in /proc."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def seal(descriptor: int) -> None:
    """Set every seal; a sealed file stays as it is.

    Raises:
        OSError: EBUSY while somebody has the file mapped writable; EPERM or EINVAL where it cannot be sealed at all.
    """
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)


def seal_bytes(name: str, data: bytes) -> SealedFile:
    """Copy `data` into a sealed memory file.

    Raises:
        SealError: there is no memory for it.
    """
    descriptor = new_memory_file(name)
    try:
        write_all(descriptor, data)
    except OSError as error:
        os.close(descriptor)
        message = f"the memory file cannot be filled: {error.strerror}"
        raise SealError(message) from error
    return SealedFile(descriptor)


def seal_copy(name: str, source: int, *, size: int) -> SealedFile:
    """Copy the first `size` bytes behind the descriptor `source` into a sealed memory file. Reads and hashes: call it in a thread.

    Raises:
        SealError: the source is shorter, cannot be read, or there is no memory.
    """
    descriptor = new_memory_file(name)
    try:
        copy_descriptor(source, descriptor, size=size)
    except OSError as error:
        os.close(descriptor)
        message = f"the file cannot be copied into memory: {error.strerror or error}"
        raise SealError(message) from error
    return SealedFile(descriptor)


def copy_descriptor(source: int, target: int, *, size: int) -> None:
    """Copy `size` bytes from the start of `source` to the place `target` is at, inside the kernel.

    Raises:
        OSError: the source ends early, or one of them fails.
    """
    copied = 0
    while copied < size:
        count = os.sendfile(target, source, copied, min(size - copied, 64 * _CHUNK_BYTES))
        if count == 0:
            message = f"the file ends after {copied} of {size} bytes"
            raise SealError(message)
        copied += count


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`.

    Raises:
        OSError: the descriptor takes no more.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_all(descriptor: int, *, size: int) -> bytes:
    """Read exactly the first `size` bytes, wherever the descriptor is at.

    Raises:
        SealError: the file ends early.
    """
    parts: list[bytes] = []
    offset = 0
    while offset < size:
        part = os.pread(descriptor, min(size - offset, 64 * _CHUNK_BYTES), offset)
        if not part:
            message = f"the file ends after {offset} of {size} bytes"
            raise SealError(message)
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def digest_of(descriptor: int) -> str:
    """Return the SHA-256 of the whole file, in hexadecimal, wherever the descriptor is at."""
    hasher = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    offset = 0
    while count := os.preadv(descriptor, [buffer], offset):
        hasher.update(memoryview(buffer)[:count])
        offset += count
    return hasher.hexdigest()
