"""The certificate side of the development trust domain: an authority and a certificate log, on one machine. NON-PRODUCTION.

Whoever can read these keys can sign as anybody in the development domain. They prove that the code path works, not who signed.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from registry.provenance.domains import NON_PRODUCTION_LABEL

ORGANIZATION = f"{NON_PRODUCTION_LABEL} development trust root"

Window: TypeAlias = tuple[datetime, datetime]
"""From when to when something is valid."""

CERTIFICATE_LIFETIME = timedelta(minutes=10)
"""As long as the public authority's."""

# https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_SCT_LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")

_SCT_VERSION_1 = 0
_CERTIFICATE_TIMESTAMP = 0
_PRECERTIFICATE = 1
_SHA256_ECDSA = b"\x04\x03"
_NO_EXTENSIONS = b"\0\0"


def spki(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key as DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return how a log's key is named: the SHA-256 of its DER."""
    return hashlib.sha256(spki(key)).digest()


def make_root(key: ec.EllipticCurvePrivateKey, window: Window) -> x509.Certificate:
    """Make the self-signed certificate of an authority."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, "ca.dev.invalid"),
        ]
    )
    return (
        _builder(name, name, key.public_key(), key.public_key(), window)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=False, certifies=True), critical=True)
        .sign(key, hashes.SHA256())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DevAuthority:
    """Issues certificates that carry the promise of a certificate log, as the public authority does."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    log_key: ec.EllipticCurvePrivateKey
    """Of the certificate log, not of the transparency log."""

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        *,
        identity: str,
        issuer: str,
        window: Window,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING,
    ) -> x509.Certificate:
        """Issue a certificate that names `identity` by the word of `issuer`."""
        builder = (
            _builder(x509.Name([]), self.certificate.subject, public_key, self.key.public_key(), window)
            .add_extension(_key_usage(signs=True, certifies=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(identity)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER, issuer.encode()), critical=False)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_V2, asn1.encode_der(issuer)), critical=False)
        )
        # The certificate without the list of promises is, byte for byte, what the promise is about (RFC 6962 §3.2).
        bare = builder.sign(self.key, hashes.SHA256()).tbs_certificate_bytes
        promises = x509.UnrecognizedExtension(_SCT_LIST, asn1.encode_der(self._promise(bare, at=window[0])))
        return builder.add_extension(promises, critical=False).sign(self.key, hashes.SHA256())

    def _promise(self, bare: bytes, *, at: datetime) -> bytes:
        """Return the list of one signed certificate timestamp over a certificate's bytes (RFC 6962 §3.3)."""
        milliseconds = int(at.timestamp() * 1000)
        entry = key_id(self.key.public_key()) + len(bare).to_bytes(3, "big") + bare
        head = struct.pack("!BBQH", _SCT_VERSION_1, _CERTIFICATE_TIMESTAMP, milliseconds, _PRECERTIFICATE)
        signature = self.log_key.sign(head + entry + _NO_EXTENSIONS, ec.ECDSA(hashes.SHA256()))
        promise = (
            bytes([_SCT_VERSION_1])
            + key_id(self.log_key.public_key())
            + struct.pack("!Q", milliseconds)
            + _NO_EXTENSIONS
            + _SHA256_ECDSA
            + struct.pack("!H", len(signature))
            + signature
        )
        return struct.pack("!HH", len(promise) + 2, len(promise)) + promise


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    window: Window,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(window[0])
        .not_valid_after(window[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, signs: bool, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certifies,
        crl_sign=certifies,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(identity: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(identity) if "://" in identity else x509.RFC822Name(identity)
