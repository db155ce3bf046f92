"""The host platform's interfaces, put together from what the operator set: those without an address answer that they are not offered."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from runnerd.capabilities.handlers import Handler
from runnerd.capabilities.platform.client import PlatformClient
from runnerd.capabilities.platform.connections import PlatformConnections
from runnerd.capabilities.platform.internal import InternalApi
from runnerd.capabilities.platform.invoicing import invoicing_handlers
from runnerd.capabilities.platform.reading import reading_handlers
from runnerd.capabilities.platform.tokens import TokenFile, TokenFileError
from runnerd.capabilities.platform.ui_proxy import ApiKeys, UiProxy, ui_proxy_handlers
from runnerd.capabilities.unavailable import unavailable_handlers

_INTERNAL_INTERFACES = ("alga:extension/invoicing", "alga:extension/clients", "alga:extension/services")
_UI_PROXY = "alga:extension/ui-proxy"


class PlatformSettingsError(ValueError):
    """A file that the settings name cannot be used. The text names it and repeats nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformOptions:
    """Where the platform is and what a call of it may cost."""

    base_url: str | None
    """Where the internal routes are; checked by the settings, and without a slash at the end."""
    token_file: Path | None
    """Set where `base_url` is."""
    proxy_base_url: str | None
    """Where guests' routes go; `base_url` where it is None."""
    proxy_token_file: Path | None
    ca_file: Path | None
    """The only authorities that are believed; None: those that browsers believe."""
    production: bool
    connect_seconds: float
    call_seconds: float
    calls: int
    """At once."""
    calls_per_install: int
    answer_bytes: int
    proxy_answer_bytes: int


class Platform:
    """The daemon's side of one host platform.

    Args:
        options: from the settings.
        api_keys: open the secret that goes along with guests' routes; None where this runner has no secrets.

    Raises:
        PlatformSettingsError: a file is unusable.
    """

    def __init__(self, options: PlatformOptions, *, api_keys: ApiKeys | None = None) -> None:
        self._options = options
        self._api_keys = api_keys
        self._connections = PlatformConnections(
            verify=_authorities(options.ca_file), most=options.calls, most_per_install=options.calls_per_install
        )

    def handlers(self) -> Iterable[Mapping[int, Handler]]:
        """Return the handlers of all four interfaces.

        Raises:
            PlatformSettingsError: a token is unusable, or one opens both doors.
        """
        options = self._options
        token = self._token(options.token_file)
        proxy_token = self._token(options.proxy_token_file)
        if options.base_url is None or token is None:
            yield unavailable_handlers(*_INTERNAL_INTERFACES)
        else:
            api = InternalApi(client=self._client(options.base_url), token=token, answer_bytes=options.answer_bytes)
            yield invoicing_handlers(api)
            yield reading_handlers(api)
        proxied = options.proxy_base_url or options.base_url
        if proxied is None:
            yield unavailable_handlers(_UI_PROXY)
        else:
            proxy = UiProxy(
                client=self._client(proxied),
                token=proxy_token,
                internal_token=token,
                api_keys=self._api_keys,
                answer_bytes=options.proxy_answer_bytes,
            )
            try:
                proxy.own_token()
            except TokenFileError as error:
                raise PlatformSettingsError(str(error)) from error
            yield ui_proxy_handlers(proxy)

    async def aclose(self) -> None:
        """Close every connection. No call may be under way."""
        await self._connections.aclose()

    def _client(self, base_url: str) -> PlatformClient:
        options = self._options
        return PlatformClient(base_url, self._connections, connect_seconds=options.connect_seconds, call_seconds=options.call_seconds)

    def _token(self, file: Path | None) -> TokenFile | None:
        if file is None:
            return None
        token = TokenFile(file, production=self._options.production)
        try:
            token.read()
        except TokenFileError as error:
            raise PlatformSettingsError(str(error)) from error
        return token


def _authorities(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        message = f"platform.ca_file {ca_file} cannot be read as certificates"
        raise PlatformSettingsError(message) from error
