"""The sealed form of a value, and what can be wrong with one.

    SecretEnvelopeError
      EnvelopeRejectedError     it is not what was sealed for this place: changed, moved, or under another key
      UnknownKeyError           it names a key that this process was not given
      KeyServiceError           the key service does not answer, or not to us; says nothing about the envelope

No message holds a value, a key or a token.
"""

from __future__ import annotations

from dataclasses import dataclass


class SecretEnvelopeError(Exception):
    """A value could not be sealed or opened."""


class EnvelopeRejectedError(SecretEnvelopeError):
    """An envelope is not what was sealed for this place."""


class UnknownKeyError(SecretEnvelopeError):
    """An envelope names a key that this process was not given."""


class KeyServiceError(SecretEnvelopeError):
    """A key service does not answer, refuses us, or answers what it should not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """A data key under a key-encryption key.

    Names of key-encryption keys are "local:<key id>", "vault:<mount>/<key>:v<version>" and "kms:<resource name of the key's version>".
    """

    kek_id: str
    wrapped: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A sealed value: under a data key of its own, which is under `key`."""

    key: WrappedKey
    ciphertext: bytes
    """AES-256-GCM: 12 bytes of nonce, the ciphertext, 16 bytes of tag."""
