"""Who may have signed: the sigstore policy of one publisher in one trust domain.

Attack: a signature that is perfectly good, by somebody else. sigstore proves *an* identity; only this policy says *whose* counts. It is
made from a list of exact pairs of issuer and identity that must not be empty, and no policy in the product accepts everybody.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.x509 import Certificate
from sigstore.errors import VerificationError
from sigstore.verify import policy

from registry.domain.records import AllowedSigner


class SignerNotAllowedError(VerificationError):
    """The certificate names none of the signers that may sign for the publisher."""


class AllowedSignersPolicy:
    """Accepts a certificate that names one of the signers exactly: issuer (OID .1.8, not the deprecated .1.1) and identity.

    Used for one verification: `matched` then says who it was.

    Args:
        signers: at least one.
    """

    def __init__(self, signers: Sequence[AllowedSigner]) -> None:
        if not signers:
            message = "a policy without signers would have to accept nobody or everybody"
            raise ValueError(message)
        self._alternatives = [
            (signer, policy.AllOf([policy.OIDCIssuerV2(signer.issuer), policy.Identity(identity=signer.identity)])) for signer in signers
        ]
        self.matched: AllowedSigner | None = None

    def verify(self, cert: Certificate) -> None:
        """Check the certificate.

        Raises:
            SignerNotAllowedError: it names none of the signers, or nothing readable.
        """
        for signer, alternative in self._alternatives:
            try:
                alternative.verify(cert)
            except (VerificationError, ValueError):  # ValueError: an extension that is no DER string.
                continue
            self.matched = signer
            return
        message = "the certificate names none of the allowed signers"
        raise SignerNotAllowedError(message)
