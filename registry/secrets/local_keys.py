"""Key pairs of our own: data keys are wrapped with HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM); writers have the public half only.

    SecretKeyError    a key file is unusable; at start, never for a caller

A key's id is the RFC 7638 thumbprint of its public half, with "dev-" before it where it was made for a development machine.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from registry.key_sets import DEVELOPMENT_KEY_PREFIX
from registry.private_files import create_private_file
from registry.secrets.binding import Binding
from registry.secrets.envelope import EnvelopeRejectedError, WrappedKey

_FAMILY: Final = "local:"
_MAX_FILE_BYTES: Final = 4096
_KEY_BYTES: Final = 32
_READABLE_BY_OTHERS: Final = 0o007
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class SecretKeyError(Exception):
    """A key file is missing, malformed or not allowed here. The message names the file, never key material."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(f"{file}: {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedKeyPair:
    """Where a new pair lies."""

    private_file: Path
    public_file: Path
    kek_id: str


class LocalWrapper:
    """Wraps with the public half.

    Args:
        file: public JWK.
        refuse_development_keys: refuse a key that was made for a development machine.

    Raises:
        SecretKeyError: the file is unusable.
    """

    def __init__(self, file: Path, *, refuse_development_keys: bool) -> None:
        document = _read(file)
        # SECURITY: who seals must not be able to open (T6), not even by a file that was mixed up.
        if "d" in document:
            raise SecretKeyError(file, "holds a private key; whoever seals gets the public half only")
        self._key = _public_key(document, file)
        self._kek_id = _FAMILY + _key_id(document, self._key, file, refuse_development_keys=refuse_development_keys)

    async def wrap(self, data_key: bytes, binding: Binding) -> WrappedKey:
        """Wrap a data key for one place."""
        return WrappedKey(kek_id=self._kek_id, wrapped=_SUITE.encrypt(data_key, self._key, info=binding.associated_data()))

    async def aclose(self) -> None:
        """Nothing is held."""


class LocalUnwrapper:
    """Unwraps with private keys: the present one, and those before it until everything is wrapped anew.

    Args:
        files: private JWKs, readable by their owner alone.
        refuse_development_keys: refuse a key that was made for a development machine.

    Raises:
        SecretKeyError: one of the files is unusable.
    """

    def __init__(self, files: Sequence[Path], *, refuse_development_keys: bool) -> None:
        self._keys: dict[str, X25519PrivateKey] = {}
        for file in files:
            key_id, key = _read_private(file, refuse_development_keys=refuse_development_keys)
            self._keys[_FAMILY + key_id] = key

    def knows(self, kek_id: str) -> bool:
        """Tell whether it has this key."""
        return kek_id in self._keys

    async def unwrap(self, key: WrappedKey, binding: Binding) -> bytes:
        """Return the data key.

        Raises:
            EnvelopeRejectedError: it was not wrapped for this place, or not with this key.
        """
        try:
            return _SUITE.decrypt(key.wrapped, self._keys[key.kek_id], info=binding.associated_data())
        except (InvalidTag, ValueError) as error:
            message = "the data key was not wrapped for this tenant, install, name and version"
            raise EnvelopeRejectedError(message) from error

    async def aclose(self) -> None:
        """Forget the keys."""
        self._keys.clear()


def generate_key_pair(folder: Path, *, development: bool = False) -> GeneratedKeyPair:
    """Make a pair: `secrets.private.jwk` (0600) for daemons, `secrets.public.jwk` for writers.

    Raises:
        SecretKeyError: one of the files exists already; nothing is overwritten.
        OSError: the folder takes no file.
    """
    private = X25519PrivateKey.generate()
    public = {"crv": "X25519", "kty": "OKP", "x": _base64(private.public_key().public_bytes_raw())}
    key_id = (DEVELOPMENT_KEY_PREFIX if development else "") + _thumbprint(public["x"])
    named = {"kid": key_id, "use": "enc"}
    pair = GeneratedKeyPair(private_file=folder / "secrets.private.jwk", public_file=folder / "secrets.public.jwk", kek_id=_FAMILY + key_id)
    _write(pair.private_file, {**public, "d": _base64(private.private_bytes_raw()), **named}, mode=0o600)
    _write(pair.public_file, {**public, **named}, mode=0o644)
    return pair


def _read_private(file: Path, *, refuse_development_keys: bool) -> tuple[str, X25519PrivateKey]:
    document = _read(file)
    if file.stat().st_mode & _READABLE_BY_OTHERS:
        raise SecretKeyError(file, "a private key must not be accessible to everybody (chmod 600)")
    public = _public_key(document, file)
    key = X25519PrivateKey.from_private_bytes(_key_bytes(document, "d", file))
    if key.public_key().public_bytes_raw() != public.public_bytes_raw():
        raise SecretKeyError(file, "its private and its public half are of different keys")
    return _key_id(document, public, file, refuse_development_keys=refuse_development_keys), key


def _read(file: Path) -> Mapping[str, object]:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
        document = json.loads(data) if len(data) <= _MAX_FILE_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise SecretKeyError(file, "cannot be read as JSON") from error
    if not isinstance(document, dict) or document.get("kty") != "OKP" or document.get("crv") != "X25519":
        raise SecretKeyError(file, "is no X25519 JWK; `extctl secrets keygen` makes one")
    return document


def _public_key(document: Mapping[str, object], file: Path) -> X25519PublicKey:
    return X25519PublicKey.from_public_bytes(_key_bytes(document, "x", file))


def _key_bytes(document: Mapping[str, object], member: str, file: Path) -> bytes:
    text = document.get(member)
    try:
        key = urlsafe_b64decode(f"{text}=") if isinstance(text, str) else b""
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise SecretKeyError(file, f'its "{member}" is no X25519 key')
    return key


def _key_id(document: Mapping[str, object], key: X25519PublicKey, file: Path, *, refuse_development_keys: bool) -> str:
    key_id = document.get("kid")
    thumbprint = _thumbprint(_base64(key.public_bytes_raw()))
    if not isinstance(key_id, str) or key_id.removeprefix(DEVELOPMENT_KEY_PREFIX) != thumbprint:
        raise SecretKeyError(file, "its kid is not the thumbprint of the key")
    if refuse_development_keys and key_id.startswith(DEVELOPMENT_KEY_PREFIX):
        raise SecretKeyError(file, "is a development key, which is refused here")
    return key_id


def _thumbprint(x: str) -> str:
    # RFC 7638: the required members in this order, without spaces.
    canonical = json.dumps({"crv": "X25519", "kty": "OKP", "x": x}, separators=(",", ":"))
    return _base64(hashlib.sha256(canonical.encode()).digest())


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _write(file: Path, document: Mapping[str, object], *, mode: int) -> None:
    try:
        create_private_file(file, json.dumps(document, indent=2).encode() + b"\n", mode=mode)
    except FileExistsError as error:
        raise SecretKeyError(file, "exists already") from error
