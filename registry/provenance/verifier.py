"""Verifies that a bundle was signed by one of its publisher's signers, offline, under pinned trust roots.

Attacks: an archive altered after signing; a signature by somebody else, by an expired or foreign authority, or in no public
log; a log entry of another artifact; a library that lets an unexpected exception pass for success. Verification is a numbered
procedure that returns a proof or raises; whatever else happens in it is a refusal (fail closed).

`sigstore` leaves gaps that are closed here: it ignores when authorities and log keys ended, it knows no limit on the size of a bundle, and
it raises exceptions of many libraries. Revocation (the denylist) is not part of this: the callers check it, uncached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NoReturn

from sigstore.errors import CertValidationError
from sigstore.hashes import Hashed
from sigstore.models import Bundle, IncompatibleEntry
from sigstore_models.bundle.v1 import Bundle as BundleModel
from sigstore_models.common.v1 import HashAlgorithm

from registry.domain.digests import ContentHash, hex_of, is_content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MAX_SIGNATURE_BYTES
from registry.domain.records import AllowedSigner
from registry.provenance.domains import TrustConfigurationError, TrustDomain, load_trust_domains
from registry.provenance.policy import AllowedSignersPolicy, SignerNotAllowedError

__all__ = [
    "MAX_BUNDLE_BYTES",
    "BundleVerifier",
    "Stage",
    "TrustConfigurationError",
    "TrustDomain",
    "VerifiedSignature",
    "load_trust_domains",
]

MAX_BUNDLE_BYTES: Final = MAX_SIGNATURE_BYTES


class Stage(StrEnum):
    """Where a verification ended; `metadata["stage"]` of the refusal. In the order of the procedure."""

    BUNDLE_TOO_LARGE = "bundle_too_large"
    MALFORMED = "malformed"
    UNSUPPORTED = "unsupported"
    UNKNOWN_TRUST_DOMAIN = "unknown_trust_domain"
    CERTIFICATE_UNTRUSTED = "certificate_untrusted"
    SIGNER_NOT_ALLOWED = "signer_not_allowed"
    SIGNATURE_INVALID = "signature_invalid"
    OUTSIDE_TRUST_WINDOW = "outside_trust_window"


_DETAILS: Final = {
    Stage.BUNDLE_TOO_LARGE: f"The signature is longer than {MAX_BUNDLE_BYTES} bytes; send the sigstore bundle that the signing tool wrote.",
    Stage.MALFORMED: "The signature is no sigstore bundle; send the file that the signing tool wrote, unchanged.",
    Stage.UNSUPPORTED: "The signature is of a kind that is not accepted; sign the archive itself, with a certificate.",
    Stage.UNKNOWN_TRUST_DOMAIN: "No signer of this publisher belongs to a trust domain that is configured here; register another signer.",
    Stage.CERTIFICATE_UNTRUSTED: "The signing certificate was not issued under the publisher's trust domain; sign with its authority.",
    Stage.SIGNER_NOT_ALLOWED: "The certificate names none of the publisher's signers; sign as one of them, or register this identity.",
    Stage.SIGNATURE_INVALID: "The signature, or its entry in the transparency log, does not fit this archive; sign the archive again.",
    Stage.OUTSIDE_TRUST_WINDOW: "The certificate or the log entry comes from an authority that was not valid at the time; sign again.",
}

_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSignature:
    """Proof that an archive with this hash was signed by an allowed signer. Only `BundleVerifier.verify` can make one."""

    content_hash: ContentHash
    trust_domain: str
    production: bool
    """False: signed under a development root, which proves nothing about who signed."""
    issuer: str
    identity: str
    signed_at: datetime
    """When the signing certificate was issued, by the word of the authority; the signature is from the minutes after."""
    root_sha256: str
    """Of the trusted root under which this was verified."""
    seal: InitVar[object] = None

    def __post_init__(self, seal: object) -> None:
        # SECURITY: trust is a type (DESIGN §2.4); whoever holds one of these need not ask how it was made.
        if seal is not _SEAL:
            message = "only BundleVerifier.verify makes a VerifiedSignature"
            raise TypeError(message)

    @property
    def signer(self) -> AllowedSigner:
        """The registered signer that matched."""
        return AllowedSigner(trust_domain=self.trust_domain, issuer=self.issuer, identity=self.identity)


class _RejectionError(Exception):
    """The procedure ended at a stage; never leaves this module."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.stage = stage


class BundleVerifier:
    """Verifies signatures under the trust domains of this installation. Thread-safe; about 2 ms of CPU for each verification.

    Args:
        domains: with distinct names; none at all refuses every signature.
    """

    def __init__(self, domains: Sequence[TrustDomain]) -> None:
        if len({domain.name for domain in domains}) != len(domains):
            message = "two trust domains have one name"
            raise TrustConfigurationError(message)
        self._domains = tuple(domains)

    @property
    def domains(self) -> tuple[TrustDomain, ...]:
        """The trust domains that are asked, in this order."""
        return self._domains

    def verify(self, *, content_hash: ContentHash, bundle_json: bytes, signers: Sequence[AllowedSigner]) -> VerifiedSignature:
        """Verify that one of `signers` signed the archive with this hash.

        0. The hash is well formed and the signature is short enough to be read.
        1. It is a sigstore bundle, of the kind that is accepted: a message signature with a certificate.
        2. At least one signer belongs to a trust domain that is known here. Each such domain is asked alone; roots never mix.
        3. sigstore: a time that can be trusted, the chain to the authority, the certificate log's promise, the signer policy (exact issuer
           and identity), the log's inclusion proof and checkpoint, the signature over the archive's hash, and that all speak of the same.
        4. The same again, with only those authorities and logs that were valid when the certificate was issued.
        5. The policy was asked and said who it was.

        The caller has computed `content_hash` from the very bytes that it will use, and checks revocation itself.

        Raises:
            ValueError: `content_hash` is not one.
            RefusalError: SIGNATURE_REJECTED; `metadata["stage"]` is a `Stage`. No identity of a refused bundle is told as if it had signed.
        """
        # (0) The input.
        if not is_content_hash(content_hash):
            message = f"not a content hash: {content_hash[:80]!r}"
            raise ValueError(message)
        try:
            if len(bundle_json) > MAX_BUNDLE_BYTES:
                _reject(Stage.BUNDLE_TOO_LARGE)
            return self._verify(content_hash, _parse(bundle_json), signers)
        except _RejectionError as exc:
            raise RefusalError(Reason.SIGNATURE_REJECTED, _DETAILS[exc.stage], metadata={"stage": exc.stage}) from exc

    def _verify(self, content_hash: ContentHash, bundle: Bundle, signers: Sequence[AllowedSigner]) -> VerifiedSignature:
        # (2) Trust domains, each alone.
        failures: list[_RejectionError] = []
        for domain in self._domains:
            allowed = [signer for signer in signers if signer.trust_domain == domain.name]
            if not allowed:
                continue
            try:
                return _verify_in(domain, content_hash, bundle, allowed)
            except _RejectionError as exc:
                failures.append(exc)
        if not failures:
            _reject(Stage.SIGNER_NOT_ALLOWED if not signers else Stage.UNKNOWN_TRUST_DOMAIN)
        # The domain in which the procedure got furthest is the one that was meant.
        order = list(Stage)
        raise max(failures, key=lambda failure: order.index(failure.stage))


def _parse(bundle_json: bytes) -> Bundle:
    # (1) The kind of signature.
    try:
        model = BundleModel.from_json(bundle_json)
    except Exception as exc:  # The parsers leak their own exceptions; all of them mean the same.
        raise _RejectionError(Stage.MALFORMED) from exc
    if model.message_signature is None or model.verification_material.public_key is not None:
        _reject(Stage.UNSUPPORTED)
    try:
        bundle = Bundle(model)
    except IncompatibleEntry as exc:
        raise _RejectionError(Stage.UNSUPPORTED) from exc
    except Exception as exc:
        raise _RejectionError(Stage.MALFORMED) from exc
    return bundle


def _verify_in(domain: TrustDomain, content_hash: ContentHash, bundle: Bundle, allowed: list[AllowedSigner]) -> VerifiedSignature:
    signers = AllowedSignersPolicy(allowed)
    hashed = Hashed(algorithm=HashAlgorithm.SHA2_256, digest=bytes.fromhex(hex_of(content_hash)))
    # (3) sigstore.
    # SECURITY: any exception rejects. sigstore raises its own and leaks TypeError, ValueError, OverflowError, binascii.Error and others.
    try:
        domain.verifier.verify_artifact(hashed, bundle, signers)
    except SignerNotAllowedError as exc:
        raise _RejectionError(Stage.SIGNER_NOT_ALLOWED) from exc
    except CertValidationError as exc:
        raise _RejectionError(Stage.CERTIFICATE_UNTRUSTED) from exc
    except Exception as exc:
        raise _RejectionError(Stage.SIGNATURE_INVALID) from exc
    # (4) Only what was valid then.
    signed_at = bundle.signing_certificate.not_valid_before_utc
    narrowed = domain.verifier_at(signed_at)
    if narrowed is None:
        _reject(Stage.OUTSIDE_TRUST_WINDOW)
    try:
        if narrowed is not domain.verifier:
            narrowed.verify_artifact(hashed, bundle, signers)
    except Exception as exc:
        raise _RejectionError(Stage.OUTSIDE_TRUST_WINDOW) from exc
    # (5) Who it was.
    if signers.matched is None:
        _reject(Stage.SIGNER_NOT_ALLOWED)
    return VerifiedSignature(
        content_hash=content_hash,
        trust_domain=domain.name,
        production=domain.production,
        issuer=signers.matched.issuer,
        identity=signers.matched.identity,
        signed_at=signed_at,
        root_sha256=domain.root_sha256,
        seal=_SEAL,
    )


def _reject(stage: Stage) -> NoReturn:
    raise _RejectionError(stage)
