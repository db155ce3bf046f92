"""Key files of tokens: reading public key sets and private keys, making a pair for a development machine.

Attacks this stops: a symmetric or private key slipped into a public set (who can verify could then mint); a development key in
production; a private key that everybody on the machine can read; two keys under one id.

    KeySetError             a key file is unusable; at start and on reload, never for a caller
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import OKPAlgorithm

from registry.private_files import create_private_file

DEVELOPMENT_KEY_PREFIX: Final = "dev-"
"""Key ids made by `generate_key_set` begin with this; production refuses them."""

_MAX_FILE_BYTES = 256 * 1024
_MAX_KEYS = 64
_MIN_RSA_BITS = 2048
_PRIVATE_PARAMETERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_READABLE_BY_OTHERS = 0o007


class KeySetError(Exception):
    """A key file is missing, malformed or not allowed here. The message names the file, never key material."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = file


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A verifying key and the only algorithm it is used with."""

    key: jwt.PyJWK
    algorithm: str


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """An Ed25519 signing key and its id."""

    key: Ed25519PrivateKey
    kid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedKeySet:
    """Where a generated key pair lies."""

    private_jwk_file: Path
    jwks_file: Path
    kid: str


def file_version(file: Path) -> tuple[int, int, int]:
    """Identify the present content of `file`: time, size and inode, for Kubernetes swaps mounted files by a link.

    Raises:
        KeySetError: it cannot be read.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise KeySetError(file, "cannot be read") from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def load_public_keys(file: Path, *, algorithms: frozenset[str], refuse_development_keys: bool) -> Mapping[str, PublicKey]:
    """Read the signing keys of a JSON Web Key Set, by key id; a sole key may be without id and is then under "".

    Keys for encryption or of kinds that are not accepted are passed over: identity providers publish them beside the others.

    Raises:
        KeySetError: the file is malformed, holds private or symmetric material, a refused development key, two keys of one id, or
            no usable key.
    """
    entries = _read_object(file).get("keys")
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MAX_KEYS:
        raise KeySetError(file, f'a key set has 1 to {_MAX_KEYS} entries in "keys"')
    keys: dict[str, PublicKey] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("kid", ""), str):
            raise KeySetError(file, 'an entry of "keys" is not an object, or its kid is not text')
        # SECURITY: a symmetric or private key here would turn whoever verifies into an issuer.
        if _PRIVATE_PARAMETERS & entry.keys() or entry.get("kty") == "oct":
            raise KeySetError(file, "holds private or symmetric key material; only public keys belong here")
        kid = entry.get("kid", "")
        if refuse_development_keys and kid.startswith(DEVELOPMENT_KEY_PREFIX):
            raise KeySetError(file, "holds a development key, which is refused here")
        public = _public_key(entry, algorithms)
        if public is None:
            continue
        if kid in keys:
            raise KeySetError(file, "two keys have the same kid")
        keys[kid] = public
    if not keys or ("" in keys and len(keys) > 1):
        raise KeySetError(file, "no usable signing key, or several of which one has no kid")
    return keys


def load_private_key(file: Path, *, refuse_development_keys: bool) -> PrivateKey:
    """Read an Ed25519 private JWK with a key id.

    Raises:
        KeySetError: it is not one, everybody can read it, or it is a refused development key.
    """
    document = _read_object(file)
    if file.stat().st_mode & _READABLE_BY_OTHERS:
        raise KeySetError(file, "a private key must not be accessible to everybody (chmod 600)")
    kid = document.get("kid")
    if not isinstance(kid, str) or not kid:
        raise KeySetError(file, "the key has no kid")
    if refuse_development_keys and kid.startswith(DEVELOPMENT_KEY_PREFIX):
        raise KeySetError(file, "is a development key, which is refused here")
    try:
        key = OKPAlgorithm.from_jwk(document)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise KeySetError(file, "not an Ed25519 private JWK") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeySetError(file, "not an Ed25519 private JWK")
    return PrivateKey(key, kid)


def generate_key_set(folder: Path, name: str) -> GeneratedKeySet:
    """Make an Ed25519 key pair for a development machine: `<name>.private.jwk` (0600) and `<name>.jwks.json`.

    The key id begins with `DEVELOPMENT_KEY_PREFIX`, so that production can refuse it.

    Raises:
        KeySetError: one of the files exists already; nothing is overwritten.
    """
    private = Ed25519PrivateKey.generate()
    public_jwk: dict[str, Any] = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    # RFC 7638: the thumbprint is taken over the required members in this order, without spaces.
    canonical = json.dumps({member: public_jwk[member] for member in ("crv", "kty", "x")}, separators=(",", ":"))
    kid = DEVELOPMENT_KEY_PREFIX + urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).decode().rstrip("=")
    named = {"kid": kid, "alg": "EdDSA", "use": "sig"}
    private_file, public_file = folder / f"{name}.private.jwk", folder / f"{name}.jwks.json"
    _write_new(private_file, {**OKPAlgorithm.to_jwk(private, as_dict=True), **named}, mode=0o600)
    _write_new(public_file, {"keys": [{**public_jwk, **named}]}, mode=0o644)
    return GeneratedKeySet(private_jwk_file=private_file, jwks_file=public_file, kid=kid)


def _public_key(entry: dict[str, Any], algorithms: frozenset[str]) -> PublicKey | None:
    if entry.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK(entry)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    # SECURITY: the algorithm follows from the key's own type; a token never chooses it.
    algorithm = _algorithm_of(key.key)
    if algorithm not in algorithms or entry.get("alg", algorithm) != algorithm:
        return None
    return PublicKey(key, algorithm)


def _algorithm_of(key: object) -> str:
    match key:
        case Ed25519PublicKey():
            return "EdDSA"
        case EllipticCurvePublicKey() if isinstance(key.curve, SECP256R1):
            return "ES256"
        case RSAPublicKey() if key.key_size >= _MIN_RSA_BITS:
            return "RS256"
        case _:
            return "unsupported"


def _read_object(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
        document = json.loads(data) if len(data) <= _MAX_FILE_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise KeySetError(file, "cannot be read as JSON") from error
    if not isinstance(document, dict):
        raise KeySetError(file, f"is not a JSON object of at most {_MAX_FILE_BYTES} bytes")
    return document


def _write_new(file: Path, document: Mapping[str, object], *, mode: int) -> None:
    try:
        create_private_file(file, json.dumps(document, indent=2).encode() + b"\n", mode=mode)
    except FileExistsError as error:
        raise KeySetError(file, "exists already") from error
