"""Opening: what the daemon alone can do. No process that writes secrets imports this module (import-linter holds the gateway to it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from registry.secrets.binding import Binding
from registry.secrets.envelope import Envelope, EnvelopeRejectedError, UnknownKeyError, WrappedKey
from registry.secrets.local_keys import LocalUnwrapper
from registry.secrets.sealing import DATA_KEY_BYTES, NONCE_BYTES, cloud_kms
from registry.secrets.settings import OpeningSettings
from registry.secrets.vault import VaultTransit


class KeyUnwrapper(Protocol):
    """Unwraps data keys of one family of key-encryption keys."""

    def knows(self, kek_id: str) -> bool:
        """Tell whether a data key under `kek_id` is its to unwrap."""

    async def unwrap(self, key: WrappedKey, binding: Binding) -> bytes:
        """Return the data key.

        Raises:
            EnvelopeRejectedError: it was not wrapped for this place, or not by this key.
            KeyServiceError: the service does not do it.
        """

    async def aclose(self) -> None:
        """Let go of what it holds."""


class Opener:
    """Opens envelopes.

    Args:
        unwrappers: all that the configuration names; several during a rotation or a move to another key service.
    """

    def __init__(self, unwrappers: Sequence[KeyUnwrapper]) -> None:
        self._unwrappers = tuple(unwrappers)

    async def open(self, envelope: Envelope, binding: Binding) -> bytes:
        """Return the value.

        Raises:
            EnvelopeRejectedError: the envelope is not what was sealed for this place.
            UnknownKeyError: none of the keys is ours.
            KeyServiceError: the key service does not answer, or not to us.
        """
        data_key = await self.unwrap(envelope.key, binding)
        nonce, sealed = envelope.ciphertext[:NONCE_BYTES], envelope.ciphertext[NONCE_BYTES:]
        try:
            return AESGCM(data_key).decrypt(nonce, sealed, binding.associated_data())
        except (InvalidTag, ValueError) as error:
            message = "the value was not sealed for this tenant, install, name and version"
            raise EnvelopeRejectedError(message) from error

    async def unwrap(self, key: WrappedKey, binding: Binding) -> bytes:
        """Return the data key alone. Raises as `open`."""
        for unwrapper in self._unwrappers:
            if unwrapper.knows(key.kek_id):
                data_key = await unwrapper.unwrap(key, binding)
                if len(data_key) != DATA_KEY_BYTES:
                    message = "what was unwrapped is no data key"
                    raise EnvelopeRejectedError(message)
                return data_key
        # An id is written by whoever writes the table: it is shown, cut and escaped.
        message = f"sealed with the key {key.kek_id[:100]!a}, which this process was not given"
        raise UnknownKeyError(message)

    async def aclose(self) -> None:
        """Let go of connections."""
        for unwrapper in self._unwrappers:
            await unwrapper.aclose()


def build_opener(settings: OpeningSettings, *, refuse_development_keys: bool) -> Opener:
    """Return the opener of all keys that `settings` name. Contacts nobody: a daemon starts while its key service is away.

    Raises:
        SecretKeyError: a key file is unusable.
        KeyServiceError: a key service cannot be spoken to at all: no certificate, no credentials, no library.
    """
    unwrappers: list[KeyUnwrapper] = []
    if settings.local is not None:
        unwrappers.append(LocalUnwrapper(settings.local.private_key_files, refuse_development_keys=refuse_development_keys))
    if settings.vault is not None:
        unwrappers.append(VaultTransit(settings.vault))
    if settings.kms is not None:
        unwrappers.append(cloud_kms(settings.kms))
    return Opener(unwrappers)
