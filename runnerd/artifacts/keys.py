"""The artifact signing key of this installation, and the public halves that readers hold.

The private key is used by the process that supervises compilers and by nobody else: compiler children, workers and the assets
child never see it (T1, T16). Whoever has it can make native code that this installation runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from registry.private_files import create_private_file
from runnerd.artifacts.regular_files import open_regular

MAX_FLEET_KEYS = 64
MAX_PUBLIC_KEYS = 2 + MAX_FLEET_KEYS
"""The current key, during a rotation its predecessor, and those of the other daemons of a fleet."""

_MAX_KEY_FILE_BYTES = 4096
_PRIVATE = stat.S_IRWXG | stat.S_IRWXO


class ArtifactKeyError(Exception):
    """A key file cannot be used; the text says why and is for operators."""


class ArtifactSigner:
    """Holds the private key. Keep it in the daemon."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id_of(key.public_key())

    @classmethod
    def generate(cls) -> ArtifactSigner:
        """Make a signer with a key that is kept nowhere: its artifacts are worthless after this process."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_file(cls, path: Path) -> ArtifactSigner:
        """Read the key (PKCS #8 in PEM), and create it first where the file is absent.

        Raises:
            ArtifactKeyError: the file is not a private key of this user, or others may read it.
        """
        if not os.path.lexists(path):
            _create_key_file(path)
        key = _load_private(_read_private_file(path), path)
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """Sign `message`; 64 bytes."""
        return self._key.sign(message)

    def public_key(self) -> Ed25519PublicKey:
        """Return the public half."""
        return self._key.public_key()


class ArtifactVerifier:
    """Holds public keys; a signature counts if the key it names is one of them."""

    def __init__(self, *keys: Ed25519PublicKey) -> None:
        if not 1 <= len(keys) <= MAX_PUBLIC_KEYS:
            message = f"between 1 and {MAX_PUBLIC_KEYS} public keys are needed, not {len(keys)}"
            raise ValueError(message)
        self._keys = {key_id_of(key): key for key in keys}

    def is_valid(self, *, key_id: str, message: bytes, signature: bytes) -> bool:
        """Tell whether `signature` over `message` was made by the named key, and that key is one of ours."""
        key = self._keys.get(key_id)
        if key is None:
            return False
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key (SubjectPublicKeyInfo in PEM): of a predecessor during a rotation, or of another daemon.

    Raises:
        ArtifactKeyError: the file is not an Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes()[:_MAX_KEY_FILE_BYTES])
    except (OSError, ValueError) as error:
        message = f"{path}: not a public key: {error}"
        raise ArtifactKeyError(message) from error
    if not isinstance(key, Ed25519PublicKey):
        message = f"{path}: the key is not Ed25519"
        raise ArtifactKeyError(message)
    return key


def key_id_of(key: Ed25519PublicKey) -> str:
    """Name a public key: the first 16 hexadecimal digits of its SHA-256."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _create_key_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # A second process that starts now may have been faster; its key is the one that both read then.
    with contextlib.suppress(FileExistsError):
        create_private_file(path, pem)


def _read_private_file(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            # SECURITY: a key that others can read is no secret; refusing is the only way the operator learns of it.
            if file.mode & _PRIVATE:
                message = f"{path}: others may read it; run chmod 600"
                raise ArtifactKeyError(message)
            return os.read(file.descriptor, _MAX_KEY_FILE_BYTES)
    except OSError as error:
        message = f"{path}: cannot be used as a key: {error.strerror or error}"
        raise ArtifactKeyError(message) from error


def _load_private(pem: bytes, path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        message = f"{path}: not a private key in PEM"
        raise ArtifactKeyError(message) from error
    if not isinstance(key, Ed25519PrivateKey):
        message = f"{path}: the key is not Ed25519"
        raise ArtifactKeyError(message)
    return key
