"""`extctl token`: mint a token with a development machine's keys. Not for production, and it says so."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from registry.cli.credentials import LABEL, mint_service_token, mint_user_token
from registry.cli.options import DEFAULT_STATE_FOLDER, JsonOption, StateOption
from registry.cli.output import UsageError, endings, result, warn
from registry.cli.state import state_at
from registry.domain.ids import is_tenant_id
from registry.tokens import ANY_TENANT, MAX_SERVICE_TOKEN_SECONDS, PLATFORM_ROLES

ROLES: Final = ("ext:invoke", "ext:read", "ext:manage", "ext:publish", "ext:operate")
SCOPES: Final = ("execute", "warm", "info", "assert-user", "trigger:event", "trigger:schedule")
_MAX_USER_TOKEN_SECONDS: Final = 24 * 3600

token = typer.Typer(no_args_is_help=True, help="Mint tokens with this machine's development keys (NON-PRODUCTION).")


@token.command("user")
def mint_user(  # noqa: PLR0913 - options
    tenant: Annotated[str, typer.Option(metavar="ID", help='The user\'s tenant; "*" for platform roles only.')],
    *,
    role: Annotated[list[str] | None, typer.Option(metavar="ROLE", help=f"One of {', '.join(ROLES)}; may be repeated.")] = None,
    subject: Annotated[str, typer.Option(metavar="ID", help="The user's id.")] = "alice",
    name: Annotated[str | None, typer.Option(help="The user's name.")] = None,
    email: Annotated[str | None, typer.Option(help="The user's address.")] = None,
    ttl_seconds: Annotated[int, typer.Option("--ttl", min=1, max=_MAX_USER_TOKEN_SECONDS, metavar="SECONDS", help="Lifetime.")] = 3600,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Print a user's token, for the gateway."""
    with endings(as_json=as_json):
        roles = _among(role or ["ext:invoke"], ROLES, "role")
        if not (is_tenant_id(tenant) or tenant == ANY_TENANT):
            message = f"{tenant!a} is no tenant id."
            raise UsageError(message)
        if tenant == ANY_TENANT and not set(roles) <= PLATFORM_ROLES:
            message = f'A token for the tenant "*" may hold only {", ".join(sorted(PLATFORM_ROLES))}.'
            raise UsageError(message)
        claims = {claim: value for claim, value in (("name", name), ("email", email)) if value is not None}
        minted = mint_user_token(state_at(state), tenant=tenant, roles=roles, subject=subject, ttl_seconds=ttl_seconds, **claims)
        warn(LABEL)
        result({"token": minted, "expires_in": ttl_seconds, "production": False}, as_json=as_json, text=minted)


@token.command("service")
def mint_service(  # noqa: PLR0913 - options
    scope: Annotated[list[str], typer.Option(metavar="SCOPE", help=f"One of {', '.join(SCOPES)}; may be repeated.")],
    *,
    tenant: Annotated[list[str] | None, typer.Option(metavar="ID", help='A tenant, may be repeated; "*" for all.')] = None,
    subject: Annotated[str, typer.Option(metavar="NAME", help="The service's name.")] = "extctl",
    ttl_seconds: Annotated[
        int, typer.Option("--ttl", min=1, max=MAX_SERVICE_TOKEN_SECONDS, metavar="SECONDS", help="Lifetime.")
    ] = MAX_SERVICE_TOKEN_SECONDS,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Print a service's token, for the daemon's gRPC."""
    with endings(as_json=as_json):
        scopes = _among(scope, SCOPES, "scope")
        tenants = tenant or [ANY_TENANT]
        if not all(is_tenant_id(one) or one == ANY_TENANT for one in tenants):
            message = f"{tenants!a} holds what is no tenant id."
            raise UsageError(message)
        minted = mint_service_token(state_at(state), tenants=tenants, scopes=scopes, subject=subject, ttl_seconds=ttl_seconds)
        warn(LABEL)
        result({"token": minted, "expires_in": ttl_seconds, "production": False}, as_json=as_json, text=minted)


def _among(asked: list[str], known: tuple[str, ...], what: str) -> list[str]:
    for one in asked:
        if one not in known:
            message = f"{one!a} is no {what}; the {what}s are {', '.join(known)}."
            raise UsageError(message)
    return asked
