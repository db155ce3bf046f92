"""The development trust domain: sigstore in a folder, so that a laptop signs and verifies as production does. NON-PRODUCTION.

Its keys are made on each machine at first use and never shipped; everything it writes carries the label NON-PRODUCTION and names under
`.invalid`; it signs only as identities under `.invalid`; production refuses the domain. The verifier knows nothing of this module: it is
given `trusted_root.json` like any other root.

    TrustConfigurationError    the folder cannot be used
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from registry.domain.digests import ContentHash, from_hex, hex_of, is_content_hash
from registry.domain.records import AllowedSigner
from registry.private_files import replace_private_file
from registry.provenance.dev_authority import CERTIFICATE_LIFETIME, ORGANIZATION, DevAuthority, key_id, make_root, spki
from registry.provenance.dev_log import DevLog, locked
from registry.provenance.domains import TrustConfigurationError

DOMAIN = "development"
ISSUER = "https://oidc.dev.invalid"
LIFETIME = timedelta(days=5 * 365)

TRUSTED_ROOT = "trusted_root.json"
TRUST_DOMAINS = "trust_domains.json"

_LOCK = "lock"
_LEAVES = "log.leaves"
_CERTIFICATE = "ca.certificate.pem"
_KEYS = ("ca", "certificate-log", "log")
_IDENTITY = re.compile(r"(https://([a-z0-9-]+\.)+invalid/[\x21-\x7e]{1,256}|[a-z0-9._+-]{1,64}@([a-z0-9-]+\.)+invalid)\Z")
_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_ROOT_TYPE = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevTrust:
    """An open development trust domain. Any number of processes may use one folder."""

    folder: Path
    authority: DevAuthority
    log: DevLog
    clock: Callable[[], datetime] = _now

    @classmethod
    def init(cls, folder: Path) -> Self:
        """Make the domain if there is none in this folder, and open it. Safe to call from several processes.

        Raises:
            TrustConfigurationError: the folder is somebody else's, or others may look into it.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder, stat.S_IFDIR)
        with locked(folder / _LOCK):
            if not (folder / TRUST_DOMAINS).exists():
                _make(folder)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the domain in this folder.

        Raises:
            TrustConfigurationError: there is none, or others may read its keys.
        """
        if not (folder / TRUST_DOMAINS).exists():
            message = f"{folder}: there is no development trust domain; make one with `extctl dev-trust init`"
            raise TrustConfigurationError(message)
        _check_private(folder, stat.S_IFDIR)
        ca_key, certificate_log_key, log_key = (_read_key(folder, name) for name in _KEYS)
        try:
            certificate = x509.load_pem_x509_certificate((folder / _CERTIFICATE).read_bytes())
        except (OSError, ValueError) as exc:
            message = f"{folder / _CERTIFICATE}: cannot be read; remove the folder and make a new domain"
            raise TrustConfigurationError(message) from exc
        return cls(
            folder=folder,
            authority=DevAuthority(key=ca_key, certificate=certificate, log_key=certificate_log_key),
            log=DevLog(leaves=folder / _LEAVES, lock=folder / _LOCK, key=log_key),
        )

    @property
    def trusted_root_path(self) -> Path:
        """The root that verifiers are given."""
        return self.folder / TRUSTED_ROOT

    @property
    def trust_domains_path(self) -> Path:
        """The list of domains, with this one in it, as `load_trust_domains` reads it."""
        return self.folder / TRUST_DOMAINS

    @staticmethod
    def signer(identity: str) -> AllowedSigner:
        """Return how a publisher's signer is registered that signs as `identity` here."""
        return AllowedSigner(trust_domain=DOMAIN, issuer=ISSUER, identity=identity)

    def sign(self, subject: ContentHash | Path, identity: str) -> bytes:
        """Sign an archive, or its hash.

        Args:
            subject: the hash, or the path of the archive.
            identity: who signs: `https://<name>.invalid/<path>` or an address under `.invalid`.

        Returns:
            A sigstore bundle (version 0.3) as JSON.

        Raises:
            ValueError: the identity could be somebody's, or the subject is no hash.
            OSError: the archive cannot be read or the log cannot be written.
        """
        if _IDENTITY.match(identity) is None:
            message = "a development identity is https://<name>.invalid/<path> or <name>@<domain>.invalid"
            raise ValueError(message)
        digest = bytes.fromhex(hex_of(_hash_file(subject) if isinstance(subject, Path) else _checked(subject)))
        key = ec.generate_private_key(ec.SECP256R1())
        now = self.clock()
        certificate = self.authority.issue(
            key.public_key(), identity=identity, issuer=ISSUER, window=(now - timedelta(seconds=1), now + CERTIFICATE_LIFETIME)
        )
        signature = key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
        entry = self.log.append(hashed_rekord(certificate, digest, signature), kind="hashedrekord", version="0.0.1", at=now)
        return json.dumps(make_bundle(certificate, digest, signature, entry), indent=1).encode() + b"\n"


def hashed_rekord(certificate: x509.Certificate, digest: bytes, signature: bytes) -> bytes:
    """Return the body of a log entry (hashedrekord 0.0.1) in its canonical form."""
    document: dict[str, Any] = {
        "apiVersion": "0.0.1",
        "kind": "hashedrekord",
        "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": digest.hex()}},
            "signature": {"content": _b64(signature), "publicKey": {"content": _b64(certificate.public_bytes(Encoding.PEM))}},
        },
    }
    return rfc8785.dumps(document)


def make_bundle(certificate: x509.Certificate, digest: bytes, signature: bytes, entry: dict[str, Any]) -> dict[str, Any]:
    """Return a sigstore bundle as a document."""
    return {
        "mediaType": _BUNDLE_TYPE,
        "verificationMaterial": {
            "certificate": {"rawBytes": _b64(certificate.public_bytes(Encoding.DER))},
            "tlogEntries": [entry],
        },
        "messageSignature": {
            "messageDigest": {"algorithm": "SHA2_256", "digest": _b64(digest)},
            "signature": _b64(signature),
        },
    }


def make_trusted_root(
    certificate: x509.Certificate, *, certificate_log: ec.EllipticCurvePublicKey, log: ec.EllipticCurvePublicKey
) -> dict[str, Any]:
    """Return the trusted root of an authority and its two logs as a document."""
    valid = {"start": _rfc3339(certificate.not_valid_before_utc), "end": _rfc3339(certificate.not_valid_after_utc)}

    def instance(name: str, key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
        return {
            "baseUrl": f"https://{name}.dev.invalid",
            "hashAlgorithm": "SHA2_256",
            "logId": {"keyId": _b64(key_id(key))},
            "publicKey": {"rawBytes": _b64(spki(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid},
        }

    return {
        "mediaType": _ROOT_TYPE,
        "tlogs": [instance("rekor", log)],
        "ctlogs": [instance("ctfe", certificate_log)],
        "certificateAuthorities": [
            {
                "subject": {"organization": ORGANIZATION, "commonName": "ca.dev.invalid"},
                "uri": "https://fulcio.dev.invalid",
                "certChain": {"certificates": [{"rawBytes": _b64(certificate.public_bytes(Encoding.DER))}]},
                "validFor": valid,
            }
        ],
    }


def _make(folder: Path) -> None:
    """Make keys, certificate, root and, last, the file by which a complete domain is known."""
    start = _now() - timedelta(minutes=5)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in _KEYS}
    certificate = make_root(keys["ca"], (start, start + LIFETIME))
    for name, key in keys.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        replace_private_file(folder / _key_file(name), pem)
    replace_private_file(folder / _CERTIFICATE, certificate.public_bytes(Encoding.PEM))
    replace_private_file(folder / _LEAVES, b"")
    document = make_trusted_root(certificate, certificate_log=keys["certificate-log"].public_key(), log=keys["log"].public_key())
    root = json.dumps(document, indent=1).encode() + b"\n"
    replace_private_file(folder / TRUSTED_ROOT, root)
    row = {"name": DOMAIN, "trusted_root": TRUSTED_ROOT, "trusted_root_sha256": hashlib.sha256(root).hexdigest(), "production": False}
    replace_private_file(folder / TRUST_DOMAINS, json.dumps([row], indent=1).encode() + b"\n")


def _key_file(name: str) -> str:
    return f"{name}.key.pem"


def _read_key(folder: Path, name: str) -> ec.EllipticCurvePrivateKey:
    path = folder / _key_file(name)
    try:
        _check_private(path, stat.S_IFREG)
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as exc:
        message = f"{path}: cannot be read; remove the folder and make a new domain"
        raise TrustConfigurationError(message) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        message = f"{path}: is no EC key; remove the folder and make a new domain"
        raise TrustConfigurationError(message)
    return key


def _check_private(path: Path, kind: int) -> None:
    information = path.lstat()
    if stat.S_IFMT(information.st_mode) != kind or information.st_uid != os.geteuid() or information.st_mode & 0o077:
        message = f"{path}: must belong to the current user and be closed to all others (chmod go-rwx)"
        raise TrustConfigurationError(message)


def _hash_file(path: Path) -> ContentHash:
    with path.open("rb") as file:
        return from_hex(hashlib.file_digest(file, "sha256").hexdigest())


def _checked(subject: ContentHash) -> ContentHash:
    if not is_content_hash(subject):
        message = f"not a content hash: {subject[:80]!r}"
        raise ValueError(message)
    return subject


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
