"""Data keys wrapped by HashiCorp Vault's transit engine: writers' tokens may encrypt, the daemon's may decrypt, with one key.

Attacks it stops: a redirect that carries the token elsewhere; a proxy from the environment that reads along; an answer without end; a
service that never answers. Vault meets data keys only, never a value.

The place goes along twice: as `associated_data` (Vault 1.13 and later) and, for keys made with `derived=true`, tenant and install as
`context`. A Vault that knows neither still moves nothing anywhere: the value itself is bound to its place under the data key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx

from registry.secrets.binding import Binding
from registry.secrets.envelope import EnvelopeRejectedError, KeyServiceError, WrappedKey
from registry.secrets.settings import VaultSettings

_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_TOKEN_BYTES: Final = 8 * 1024
_CONNECTIONS: Final = 16
_OK: Final = 200
_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_CIPHERTEXT: Final = re.compile(r"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/=]{1,4096}\Z")
_TOKEN: Final = re.compile(r"[\x21-\x7e]+\Z")

# Its lines of level INFO name every address, those of level DEBUG more.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


class VaultTransit:
    """Wraps and unwraps with one key of Vault; what of it the token may do is Vault's policy.

    Args:
        settings: where Vault is and which key.

    Raises:
        KeyServiceError: the authority's certificate cannot be read.
    """

    def __init__(self, settings: VaultSettings) -> None:
        self._family = f"vault:{settings.mount}/{settings.key}:v"
        self._mount, self._key = settings.mount, settings.key
        self._token = _TokenFile(settings.token_file)
        self._timeout_seconds = settings.timeout_seconds
        self._client = httpx.AsyncClient(
            base_url=settings.address,
            headers={"x-vault-request": "true"} | ({} if settings.namespace is None else {"x-vault-namespace": settings.namespace}),
            verify=_tls(settings),
            timeout=settings.timeout_seconds,
            limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            # SECURITY: neither a proxy of the environment nor where an answer points to gets the token.
            trust_env=False,
            follow_redirects=False,
        )

    def knows(self, kek_id: str) -> bool:
        """Tell whether a data key was wrapped by this key, in any of its versions."""
        return kek_id.startswith(self._family)

    async def wrap(self, data_key: bytes, binding: Binding) -> WrappedKey:
        """Have a data key encrypted for one place.

        Raises:
            KeyServiceError: Vault does not do it.
        """
        answer = await self._ask("encrypt", {"plaintext": b64encode(data_key).decode(), **_place(binding)})
        ciphertext = answer.get("ciphertext")
        match = _CIPHERTEXT.match(ciphertext) if isinstance(ciphertext, str) else None
        if match is None:
            message = "Vault answered no ciphertext"
            raise KeyServiceError(message)
        return WrappedKey(kek_id=self._family + match[1], wrapped=match[0].encode())

    async def unwrap(self, key: WrappedKey, binding: Binding) -> bytes:
        """Have a data key decrypted.

        Raises:
            EnvelopeRejectedError: Vault says that the request is none for this key and place.
            KeyServiceError: Vault does not do it.
        """
        try:
            ciphertext = key.wrapped.decode("ascii")
        except UnicodeDecodeError:
            ciphertext = ""
        # SECURITY: what whoever writes the table makes up reaches Vault in the form of a ciphertext only.
        if _CIPHERTEXT.match(ciphertext) is None:
            message = "the wrapped data key has not the form of Vault's"
            raise EnvelopeRejectedError(message)
        answer = await self._ask("decrypt", {"ciphertext": ciphertext, **_place(binding)})
        plaintext = answer.get("plaintext")
        try:
            return b64decode(plaintext if isinstance(plaintext, str) else "?", validate=True)
        except ValueError:
            message = "Vault answered no plaintext"
            raise KeyServiceError(message) from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, verb: str, document: Mapping[str, str]) -> Mapping[str, object]:
        token = await self._token.read()
        status, body = await self._post(verb, document, token)
        if status == _FORBIDDEN and (renewed := await self._token.read(anew=True)) != token:
            status, body = await self._post(verb, document, renewed)
        if status == _BAD_REQUEST and verb == "decrypt":
            message = "Vault refuses the data key: it was not wrapped for this place, or not by this key"
            raise EnvelopeRejectedError(message)
        if status != _OK:
            # Its words may repeat what was sent; the status says enough to look into Vault's own audit log.
            message = f"Vault answered {status} to {verb}"
            raise KeyServiceError(message)
        try:
            answer = json.loads(body)["data"]
        except (ValueError, KeyError, TypeError, RecursionError):
            message = f"Vault's answer to {verb} cannot be read"
            # SECURITY: from None: the exception holds the answer, which may be half a data key.
            raise KeyServiceError(message) from None
        if not isinstance(answer, dict):
            message = f"Vault's answer to {verb} cannot be read"
            raise KeyServiceError(message)
        return answer

    async def _post(self, verb: str, document: Mapping[str, str], token: str) -> tuple[int, bytes]:
        path = f"/v1/{self._mount}/{verb}/{self._key}"
        try:
            # The client's own timeout is for each step; an answer that drips would take for ever.
            async with (
                asyncio.timeout(self._timeout_seconds),
                self._client.stream("POST", path, json=document, headers={"x-vault-token": token}) as response,
            ):
                body = b""
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _MAX_ANSWER_BYTES:
                        message = "Vault's answer is too long"
                        raise KeyServiceError(message)
                return response.status_code, body
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            message = f"Vault does not answer: {type(error).__name__}"
            # SECURITY: from None: the exception holds the request, and with it the token and the data key.
            raise KeyServiceError(message) from None


def _place(binding: Binding) -> dict[str, str]:
    return {
        "associated_data": b64encode(binding.associated_data()).decode(),
        "context": b64encode(binding.derivation_context()).decode(),
    }


def _tls(settings: VaultSettings) -> ssl.SSLContext | bool:
    if settings.is_plaintext:
        return False
    try:
        # Of the machine where none is named; never of the environment.
        context = ssl.create_default_context(cafile=None if settings.ca_file is None else str(settings.ca_file))
    except (OSError, ssl.SSLError) as error:
        message = f"{settings.ca_file}: the authority's certificate cannot be read"
        raise KeyServiceError(message) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class _TokenFile:
    """A token that somebody else renews in its file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._version: tuple[int, int, int] | None = None
        self._token = ""

    async def read(self, *, anew: bool = False) -> str:
        """Return the token, from the file where that has changed or `anew`."""
        return await asyncio.to_thread(self._read, anew)

    def _read(self, anew: bool) -> str:  # noqa: FBT001 - by way of to_thread
        try:
            status = self._file.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            if anew or version != self._version:
                with self._file.open("rb") as stream:
                    token = stream.read(_MAX_TOKEN_BYTES).decode("ascii").strip()
                if not _TOKEN.match(token):
                    message = f"{self._file} holds no token"
                    raise KeyServiceError(message)
                self._token, self._version = token, version
        except (OSError, UnicodeDecodeError):
            message = f"{self._file}: the token cannot be read"
            raise KeyServiceError(message) from None
        return self._token
