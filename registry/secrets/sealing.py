"""Sealing: what whoever writes secrets can do with a value, and never undo.

Attack it stops (T6): the process that parses internet traffic writes secrets; with a key that also opens it could read all of them. Each
value is encrypted under a fresh data key, which is wrapped by a public key, or by a service to which this process may only say "encrypt".
The data key is forgotten at once. That it is one for each value is what lets a rotation wrap it anew without meeting a value (T6).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from registry.secrets.binding import Binding
from registry.secrets.envelope import Envelope, KeyServiceError, WrappedKey
from registry.secrets.local_keys import LocalWrapper
from registry.secrets.settings import KmsSettings, SealingSettings
from registry.secrets.vault import VaultTransit

if TYPE_CHECKING:
    from registry.secrets.kms import CloudKms

DATA_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12


class KeyWrapper(Protocol):
    """Wraps data keys and cannot unwrap them."""

    async def wrap(self, data_key: bytes, binding: Binding) -> WrappedKey:
        """Wrap `data_key` for one place.

        Raises:
            KeyServiceError: the service does not do it.
        """

    async def aclose(self) -> None:
        """Let go of what it holds."""


class Sealer:
    """Seals values.

    Args:
        wrapper: the one that the configuration chose; there is no other to fall back to.
    """

    def __init__(self, wrapper: KeyWrapper) -> None:
        self._wrapper = wrapper

    async def seal(self, value: bytes, binding: Binding) -> Envelope:
        """Seal `value` for one place.

        Raises:
            KeyServiceError: the data key could not be wrapped; nothing is sealed with anything weaker instead.
        """
        data_key, nonce = os.urandom(DATA_KEY_BYTES), os.urandom(NONCE_BYTES)
        key = await self._wrapper.wrap(data_key, binding)
        # SECURITY: bound here as well, so that the place holds whatever the wrapper makes of it.
        ciphertext = nonce + AESGCM(data_key).encrypt(nonce, value, binding.associated_data())
        return Envelope(key=key, ciphertext=ciphertext)

    async def wrap(self, data_key: bytes, binding: Binding) -> WrappedKey:
        """Wrap a data key that exists already.

        Raises:
            KeyServiceError: as `seal`.
        """
        return await self._wrapper.wrap(data_key, binding)

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._wrapper.aclose()


def build_sealer(settings: SealingSettings, *, refuse_development_keys: bool) -> Sealer:
    """Return the sealer that `settings` choose. Contacts nobody.

    Raises:
        SecretKeyError: the key file is unusable.
        KeyServiceError: the key service cannot be spoken to at all: no certificate, no credentials, no library.
    """
    if settings.local is not None:
        return Sealer(LocalWrapper(settings.local.public_key_file, refuse_development_keys=refuse_development_keys))
    if settings.vault is not None:
        return Sealer(VaultTransit(settings.vault))
    if settings.kms is not None:
        return Sealer(cloud_kms(settings.kms))
    message = "no key was chosen"
    raise KeyServiceError(message)


def cloud_kms(settings: KmsSettings) -> CloudKms:
    """Return Cloud KMS, whose library is loaded only now.

    Raises:
        KeyServiceError: the library is not installed, or there are no credentials.
    """
    try:
        from registry.secrets.kms import CloudKms  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        message = "Cloud KMS needs the extra `kms` of this package"
        raise KeyServiceError(message) from error
    return CloudKms(settings)
