"""Data keys wrapped by Google Cloud KMS: writers hold the role "encrypter", the daemon "decrypter", on one symmetric key.

Imported only where it is configured: the client library is the extra `kms`. Its calls block, so they run on threads of their own, bounded
in number and in those that wait. KMS meets data keys only, never a value; the place is their additional authenticated data.

Attacks it stops: bits that flip between here and there (CRC32C both ways, as KMS asks for it); a proxy or a redirect that reads along; the
library's own debug log, which writes requests out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from google.api_core.exceptions import BadRequest, GoogleAPICallError, RetryError
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import GoogleAuthError
from google.cloud.kms_v1 import DecryptRequest, EncryptRequest, KeyManagementServiceClient
from google.cloud.kms_v1.services.key_management_service.transports.rest import KeyManagementServiceRestTransport
from google.protobuf.json_format import ParseError
from requests.exceptions import RequestException

from registry.secrets.binding import Binding
from registry.secrets.envelope import EnvelopeRejectedError, KeyServiceError, WrappedKey
from registry.secrets.settings import KmsSettings

Answer = TypeVar("Answer")
_THREADS: Final = 4
_WAITING: Final = 64
_MAX_WRAPPED_BYTES: Final = 4096
_FAMILY: Final = "kms:"
_CRC32C_POLYNOMIAL: Final = 0x82F63B78

# SECURITY: at DEBUG it writes whole requests, with the data keys in them; whatever level the process logs at, this stays.
logging.getLogger("google").setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.WARNING)


class CloudKms:
    """Wraps and unwraps with one key of KMS; what of it the process may do is IAM's to say.

    Args:
        settings: which key, and where.

    Raises:
        KeyServiceError: there are no credentials.
    """

    def __init__(self, settings: KmsSettings) -> None:
        self._name = settings.key
        self._family = f"{_FAMILY}{settings.key}/cryptoKeyVersions/"
        self._timeout_seconds = settings.timeout_seconds
        try:
            self._client = KeyManagementServiceClient(transport=_Transport(settings))
        except GoogleAuthError as error:
            message = "there are no credentials for Cloud KMS"
            raise KeyServiceError(message) from error
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kms")
        self._asked = 0

    def knows(self, kek_id: str) -> bool:
        """Tell whether a data key was wrapped by this key, in any of its versions."""
        return kek_id.startswith(self._family)

    async def wrap(self, data_key: bytes, binding: Binding) -> WrappedKey:
        """Have a data key encrypted for one place.

        Raises:
            KeyServiceError: KMS does not do it, or what it answers did not arrive whole.
        """
        place = binding.associated_data()
        request = EncryptRequest(
            name=self._name,
            plaintext=data_key,
            plaintext_crc32c=crc32c(data_key),
            additional_authenticated_data=place,
            additional_authenticated_data_crc32c=crc32c(place),
        )
        try:
            answer = await self._ask(lambda: self._client.encrypt(request, retry=None, timeout=self._timeout_seconds))
        except EnvelopeRejectedError:
            message = "Cloud KMS refuses to encrypt: the key is not one that encrypts"
            raise KeyServiceError(message) from None
        whole = answer.verified_plaintext_crc32c and answer.verified_additional_authenticated_data_crc32c
        if not whole or answer.ciphertext_crc32c != crc32c(answer.ciphertext):
            message = "what Cloud KMS got or answered was not whole"
            raise KeyServiceError(message)
        kek_id = _FAMILY + answer.name
        if not self.knows(kek_id) or not answer.ciphertext:
            message = "Cloud KMS encrypted with another key than was asked for"
            raise KeyServiceError(message)
        return WrappedKey(kek_id=kek_id, wrapped=answer.ciphertext)

    async def unwrap(self, key: WrappedKey, binding: Binding) -> bytes:
        """Have a data key decrypted.

        Raises:
            EnvelopeRejectedError: KMS says that the request is none for this key and place.
            KeyServiceError: KMS does not do it, or what it answers did not arrive whole.
        """
        if not 1 <= len(key.wrapped) <= _MAX_WRAPPED_BYTES:
            message = "the wrapped data key has not the size of one"
            raise EnvelopeRejectedError(message)
        place = binding.associated_data()
        request = DecryptRequest(
            name=self._name,
            ciphertext=key.wrapped,
            ciphertext_crc32c=crc32c(key.wrapped),
            additional_authenticated_data=place,
            additional_authenticated_data_crc32c=crc32c(place),
        )
        answer = await self._ask(lambda: self._client.decrypt(request, retry=None, timeout=self._timeout_seconds))
        if answer.plaintext_crc32c != crc32c(answer.plaintext):
            message = "what Cloud KMS answered was not whole"
            raise KeyServiceError(message)
        return bytes(answer.plaintext)

    async def aclose(self) -> None:
        """Close the connections; requests that run end by their own timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.transport.close()  # type: ignore[no-untyped-call]  # the library's

    async def _ask(self, call: Callable[[], Answer]) -> Answer:
        if self._asked >= _THREADS + _WAITING:
            message = "too many questions to Cloud KMS wait already"
            raise KeyServiceError(message)
        self._asked += 1
        question = asyncio.get_running_loop().run_in_executor(self._threads, call)
        # A caller that gives up leaves its thread busy; the place is free when the thread is.
        question.add_done_callback(self._answered)
        try:
            # The library's timeout is for each step; an answer that drips would take for ever.
            async with asyncio.timeout(self._timeout_seconds * 2):
                return await asyncio.shield(question)
        except BadRequest:
            message = "Cloud KMS refuses the data key: it was not wrapped for this place, or not by this key"
            raise EnvelopeRejectedError(message) from None
        except (GoogleAPICallError, GoogleAuthError, RetryError, RequestException, ParseError, TimeoutError, ValueError, OSError) as error:
            message = f"Cloud KMS does not answer: {type(error).__name__}"
            # SECURITY: from None: the exception may hold the request, and with it the data key.
            raise KeyServiceError(message) from None

    def _answered(self, question: asyncio.Future[Any]) -> None:
        self._asked -= 1
        if not question.cancelled():
            question.exception()  # Whoever still waits has it.


class _Transport(KeyManagementServiceRestTransport):
    """The REST transport without what the environment or an answer could put between us and KMS."""

    def __init__(self, settings: KmsSettings) -> None:
        scheme, _, host = settings.endpoint.rpartition("://")
        super().__init__(host=host, url_scheme=scheme or "https", credentials=_nobody() if settings.is_plaintext else None)
        self._session.trust_env = False
        self._session.max_redirects = 0


def _nobody() -> Credentials:
    return AnonymousCredentials()  # type: ignore[no-untyped-call]  # the library's


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of `data`, as KMS wants it; a few hundred bytes at most are given here."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (_CRC32C_POLYNOMIAL if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF
