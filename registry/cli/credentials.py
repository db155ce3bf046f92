"""The bearer tokens of `extctl`: given by the environment or a file, or minted with a development machine's own keys.

Attack this stops: a secret on a command line is readable by everybody on the machine (`ps`) and stays in a shell's history. So a token
comes from `EXTCTL_TOKEN` or a file, is never printed but by `extctl token`, and is never sent over plain HTTP beyond this machine.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from registry.cli.output import UsageError, warn
from registry.cli.rendering import visible
from registry.cli.state import SERVICE_ISSUER, USER_ISSUER, MachineState
from registry.deployment import is_loopback
from registry.tokens import (
    ANY_TENANT,
    GATEWAY_AUDIENCE,
    MAX_SERVICE_TOKEN_SECONDS,
    MAX_TOKEN_CHARACTERS,
    RUNNER_AUDIENCE,
    KeySetError,
    TokenMinter,
)

TOKEN_VARIABLE: Final = "EXTCTL_TOKEN"  # noqa: S105 - a name
USER_TOKEN_SECONDS: Final = 3600
LABEL: Final = "NON-PRODUCTION: minted with this machine's development key"


class Credentials:
    """Finds or mints the token for a request.

    Args:
        state: the machine whose keys may mint.
        token_file: file that holds a token; takes precedence over the environment.
    """

    def __init__(self, state: MachineState, token_file: Path | None = None) -> None:
        self._state = state
        self._token_file = token_file

    def user_token(self, *, tenant: str, roles: Iterable[str], subject: str = "extctl") -> str:
        """Return the token to act as a user.

        Raises:
            UsageError: no token was given and this is no development machine.
        """
        given = self._given()
        if given is not None:
            _check_tenant(given, tenant)
            return given
        minted = mint_user_token(self._state, tenant=tenant, roles=roles, subject=subject)
        warn(f"({LABEL}: {', '.join(roles)} for tenant {visible(tenant)})")
        return minted

    def service_token(self, *, tenants: Iterable[str], scopes: Iterable[str]) -> str:
        """Return the token to act as a service.

        Raises:
            UsageError: as `user_token`.
        """
        given = self._given()
        if given is not None:
            return given
        minted = mint_service_token(self._state, tenants=tenants, scopes=scopes)
        warn(f"({LABEL}: {', '.join(scopes)})")
        return minted

    def _given(self) -> str | None:
        if self._token_file is not None:
            try:
                with self._token_file.open() as stream:
                    token = stream.read(MAX_TOKEN_CHARACTERS + 2).strip()
            except (OSError, UnicodeDecodeError) as exc:
                message = f"The token file {self._token_file} cannot be read."
                raise UsageError(message) from exc
        else:
            token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            if self._token_file is not None:
                message = f"The token file {self._token_file} is empty."
                raise UsageError(message)
            return None
        # SECURITY: nothing that could break out of a header line.
        if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
            message = f"The token is not a JWT of at most {MAX_TOKEN_CHARACTERS} characters."
            raise UsageError(message)
        return token


def _check_tenant(token: str, tenant: str) -> None:
    """Refuse a token that plainly is another tenant's: the services take the tenant from the token, and would answer for that one."""
    try:
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        of = claims.get("tenant")
    except (IndexError, ValueError, AttributeError):
        return  # The services say what is wrong with it.
    if isinstance(of, str) and of not in {tenant, ANY_TENANT}:
        message = f"The token is for tenant {visible(of)}, and --tenant says {visible(tenant)}."
        raise UsageError(message)


def mint_user_token(
    state: MachineState,
    *,
    tenant: str,
    roles: Iterable[str],
    subject: str = "extctl",
    ttl_seconds: int = USER_TOKEN_SECONDS,
    **claims: str,
) -> str:
    """Mint a user's token with the machine's development key.

    Raises:
        UsageError: the machine has no key.
    """
    minter = _minter(state, "users", issuer=USER_ISSUER, audience=GATEWAY_AUDIENCE)
    return minter.mint(subject, ttl_seconds=ttl_seconds, tenant=tenant, roles=sorted(roles), **claims)


def mint_service_token(
    state: MachineState,
    *,
    tenants: Iterable[str],
    scopes: Iterable[str],
    subject: str = "extctl",
    ttl_seconds: int = MAX_SERVICE_TOKEN_SECONDS,
) -> str:
    """Mint a service's token with the machine's development key.

    Raises:
        UsageError: the machine has no key.
    """
    minter = _minter(state, "services", issuer=SERVICE_ISSUER, audience=RUNNER_AUDIENCE)
    return minter.mint(subject, ttl_seconds=ttl_seconds, tenants=sorted(tenants), scope=" ".join(sorted(scopes)))


def check_destination(url: str) -> str:
    """Return `url` if a token may be sent there: over TLS, or without leaving this machine.

    Raises:
        UsageError: neither.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        message = f"{url} is not the address of a gateway; write https://host."
        raise UsageError(message)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        message = f"{url} is neither https nor on this machine; a token would travel unprotected."
        raise UsageError(message)
    return url.rstrip("/")


def _minter(state: MachineState, name: str, *, issuer: str, audience: str) -> TokenMinter:
    file = state.keys / f"{name}.private.jwk"
    if not file.exists():
        message = f"No token: set {TOKEN_VARIABLE}, name a --token-file, or start a development machine with `extctl up`."
        raise UsageError(message)
    try:
        return TokenMinter(file, issuer=issuer, audience=audience)
    except KeySetError as exc:
        message = f"The development key cannot be used: {exc}."
        raise UsageError(message) from exc
