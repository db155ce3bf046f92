"""Signatures for tests in which anything can be wrong: a development trust domain with every step in the open.

lab = SigningLab(folder)              keys, authority, log; `lab.trust` is the product's own `DevTrust`
lab.root()                            its trusted root as a document, to be altered
lab.domain(root)                      a `TrustDomain` of it
lab.craft(artifact, …)                a bundle as a document, good unless told otherwise
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from registry.provenance.dev_authority import DevAuthority
from registry.provenance.dev_log import DevLog
from registry.provenance.dev_trust import DOMAIN, ISSUER, DevTrust, hashed_rekord, make_bundle, make_trusted_root
from registry.provenance.domains import TrustDomain

ALICE = "https://dev.invalid/people/alice"
BOB = "https://dev.invalid/people/bob"
ARTIFACT = b"the bytes of an archive"

SigningKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class SigningLab:
    def __init__(self, folder: Path) -> None:
        self.trust = DevTrust.init(folder)
        for filler in (b"one", b"two", b"three"):  # A tree with more than one leaf has a proof with more than nothing.
            self.craft(filler)

    @property
    def authority(self) -> DevAuthority:
        return self.trust.authority

    @property
    def log(self) -> DevLog:
        return self.trust.log

    def root(self) -> dict[str, Any]:
        authority = self.trust.authority
        return make_trusted_root(authority.certificate, certificate_log=authority.log_key.public_key(), log=self.log.key.public_key())

    def domain(self, root: dict[str, Any] | None = None, *, name: str = DOMAIN, production: bool = False) -> TrustDomain:
        return TrustDomain(name=name, production=production, root=json.dumps(self.root() if root is None else root).encode())

    def craft(
        self,
        artifact: bytes = ARTIFACT,
        *,
        identity: str = ALICE,
        issuer: str = ISSUER,
        authority: DevAuthority | None = None,
        log: DevLog | None = None,
        key: SigningKey | None = None,
        window: tuple[datetime, datetime] | None = None,
        at: datetime | None = None,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING,
        certificate: x509.Certificate | None = None,
    ) -> dict[str, Any]:
        """Sign as `DevTrust.sign` does."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        moment = at or now()
        window = window or (moment - timedelta(seconds=1), moment + timedelta(minutes=10))
        public_key: Any = key.public_key()
        certificate = certificate or (authority or self.authority).issue(
            public_key, identity=identity, issuer=issuer, window=window, purpose=purpose
        )
        digest = hashlib.sha256(artifact).digest()
        signature = _sign(key, artifact)
        body = hashed_rekord(certificate, digest, signature)
        entry = (log or self.log).append(body, kind="hashedrekord", version="0.0.1", at=moment)
        return make_bundle(certificate, digest, signature, entry)

    def without_promise(self, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        """A certificate that no certificate log promised to publish: issued as always, and signed again without that extension."""
        issued = self.authority.issue(
            key.public_key(), identity=ALICE, issuer=ISSUER, window=(now() - timedelta(seconds=1), now() + timedelta(minutes=10))
        )
        builder = x509.CertificateBuilder(
            issuer_name=issued.issuer,
            subject_name=issued.subject,
            public_key=key.public_key(),
            serial_number=issued.serial_number,
            not_valid_before=issued.not_valid_before_utc.replace(tzinfo=None),
            not_valid_after=issued.not_valid_after_utc.replace(tzinfo=None),
        )
        for extension in issued.extensions:
            if not isinstance(extension.value, x509.PrecertificateSignedCertificateTimestamps):
                builder = builder.add_extension(extension.value, critical=extension.critical)
        return builder.sign(self.authority.key, hashes.SHA256())

    def with_foreign(self, other: SigningLab, *, log_key: bool) -> DevAuthority:
        """This authority with the certificate log of another; or the authority of another with this certificate log."""
        if log_key:
            return replace(self.authority, log_key=other.authority.log_key)
        return replace(other.authority, log_key=self.authority.log_key)


def _sign(key: SigningKey, artifact: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(artifact, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(artifact, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(artifact)
