"""The object store that bundles lie in: one Protocol, for a local folder today and Google Cloud Storage beside it.

Objects are written once and never changed. Their keys carry the hash of the archive, so a store needs no more than
"create only if absent" (a link in a folder, generation precondition 0 in Google Cloud Storage) to be safe against two
writers, and no reader ever trusts it: whoever reads an archive hashes the bytes before using them (T31).

    RefusalError(BUNDLE_UNAVAILABLE)    the store does not answer, or cannot hold more
    ObjectNotFoundError                 there is no such object
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from registry.domain.digests import ContentHash, from_hex, hex_of
from registry.domain.errors import Reason, RefusalError

MAX_KEY_CHARACTERS = 512
CHUNK_BYTES = 256 * 1024
"""How much of an object travels at a time."""

ARCHIVE_TYPE = "application/zstd"
SIGNATURE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
MANIFEST_TYPE = "application/json"

# SECURITY: no segment can be empty, "." or "..", or begin with a dot; a key is always below the store's own folder or prefix.
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*\Z")


class ObjectNotFoundError(LookupError):
    """There is no object under this key.

    Args:
        key: the key that was asked for.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"no object {key}")
        self.key = key


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What is known about a stored object without reading it."""

    key: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectKeys:
    """Where the three objects of one bundle lie."""

    archive: str
    signature: str
    manifest: str
    """A derived copy for tools; no code of the runner reads it (T32)."""


class BundleStore(Protocol):
    """Holds objects by key. Every method may raise `RefusalError(BUNDLE_UNAVAILABLE)`; a malformed key is a `ValueError`."""

    async def put_if_absent(self, key: str, source: Path | bytes, *, content_type: str) -> bool:
        """Create the object, whole or not at all.

        Returns:
            True if it was created, False if an object was there already; that one is left as it is.
        """
        ...

    def open(self, key: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read the object in chunks of at most `CHUNK_BYTES`; the bytes are not verified.

        Raises:
            ObjectNotFoundError: on entry.
        """
        ...

    async def read(self, key: str, max_bytes: int) -> bytes:
        """Read a small object whole.

        Raises:
            ObjectNotFoundError: there is none.
            RefusalError: BUNDLE_CORRUPT if it is larger than `max_bytes`.
        """
        ...

    async def stat(self, key: str) -> ObjectInfo | None:
        """Tell what is stored under the key, or None."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the object; removing what is not there is no error."""
        ...

    async def aclose(self) -> None:
        """Release connections. The store cannot be used afterwards."""
        ...


def object_keys(content_hash: ContentHash) -> ObjectKeys:
    """Return where the objects of a bundle lie."""
    folder = f"sha256/{hex_of(content_hash)}"
    return ObjectKeys(
        archive=f"{folder}/bundle.tar.zst",
        signature=f"{folder}/bundle.sigstore.json",
        manifest=f"{folder}/manifest.json",
    )


def check_key(key: str) -> str:
    """Return `key` if it follows the grammar of keys.

    Raises:
        ValueError: it does not.
    """
    if len(key) > MAX_KEY_CHARACTERS or _KEY.match(key) is None:
        message = f"not an object key: {key[:80]!r}"
        raise ValueError(message)
    return key


def unavailable(what: str) -> RefusalError:
    """Return the refusal for a store that does not answer; `what` is for operators only."""
    error = RefusalError(Reason.BUNDLE_UNAVAILABLE, "The bundle store does not answer; try again.")
    error.add_note(what)
    return error


def too_large(key: str, max_bytes: int) -> RefusalError:
    """Return the refusal for an object that is larger than what was ever stored under such a key."""
    error = RefusalError(Reason.BUNDLE_CORRUPT, f"A stored object is larger than the {max_bytes} bytes allowed for it.")
    error.add_note(key)
    return error


async def download(store: BundleStore, key: str, target: BinaryIO, *, max_bytes: int) -> ContentHash:
    """Copy an object into `target`, hashing the bytes on their way.

    The caller compares the result with what it asked for **before** anything reads `target`, and then reads from the same
    descriptor, never by name (T31).

    Raises:
        ObjectNotFoundError: there is no such object.
        RefusalError: BUNDLE_CORRUPT if it is larger than `max_bytes`, BUNDLE_UNAVAILABLE if the store does not answer.
    """
    digest = hashlib.sha256()
    total = 0
    async with store.open(key) as chunks:
        async for chunk in chunks:
            total += len(chunk)
            if total > max_bytes:
                raise too_large(key, max_bytes)
            digest.update(chunk)
            target.write(chunk)
    return from_hex(digest.hexdigest())
