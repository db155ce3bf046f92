"""`extctl secrets`: set, list and remove the secrets of an install, and make the key pair that seals them.

A value comes from standard input or from a file, never from the command line, which everybody on the machine can read.
"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from registry.cli.connect import connected, items_of, path_segment
from registry.cli.installing import find_install
from registry.cli.options import DEFAULT_STATE_FOLDER, GatewayOption, JsonOption, StateOption, TenantOption, TokenFileOption
from registry.cli.output import UsageError, endings, file_errors, result
from registry.cli.rendering import table, visible
from registry.secrets.binding import MAX_VALUE_BYTES
from registry.secrets.local_keys import SecretKeyError, generate_key_pair

_ROLES: Final = ["ext:manage"]
_MAX_INPUT_BYTES: Final = MAX_VALUE_BYTES + 2
"""And a line end."""

ExtensionArgument = Annotated[str, typer.Argument(metavar="EXTENSION", help="Name or id of the installed extension.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the secret, as the extension asks for it.")]

secrets = typer.Typer(no_args_is_help=True, help="Secrets of an install: set, list, remove; nobody reads one back. And the keys for them.")


@secrets.command("set")
def set_secret(  # noqa: PLR0913 - options
    extension: ExtensionArgument,
    name: NameArgument,
    *,
    tenant: TenantOption,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="File that holds the value; standard input if absent.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Keep a line end at the end of the value.")] = False,
    expires_at: Annotated[str | None, typer.Option("--expires-at", metavar="TIME", help="ISO 8601 with a time zone.")] = None,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Set a secret, or replace its value. One line end at the end is not part of it. Needs the role ext:manage."""
    with endings(as_json=as_json), file_errors():
        wanted: dict[str, Any] = {"value": _value(file, exact=exact)} | ({} if expires_at is None else {"expires_at": expires_at})
        with connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
            install = find_install(client, extension, tenant=tenant)
            address = f"/installs/{path_segment(str(install['install_id']))}/secrets/{path_segment(name)}"
            written = client.admin("PUT", address, params={"tenant_id": tenant}, json=wanted)
        text = f"{visible(name)} of {visible(extension)} is set, version {visible(str(written.get('version')))}"
        result(written, as_json=as_json, text=text)


@secrets.command("list")
def list_secrets(  # noqa: PLR0913 - options
    extension: ExtensionArgument,
    *,
    tenant: TenantOption,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """List the secrets of an install without their values. Needs the role ext:manage."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
        install = find_install(client, extension, tenant=tenant)
        page = client.admin("GET", f"/installs/{path_segment(str(install['install_id']))}/secrets", params={"tenant_id": tenant})
        columns = ["name", "version", "expires_at", "is_expired", "updated_at", "updated_by", "kek_id"]
        result(page, as_json=as_json, text=table(items_of(page), columns))


@secrets.command("remove")
def remove(  # noqa: PLR0913 - options
    extension: ExtensionArgument,
    name: NameArgument,
    *,
    tenant: TenantOption,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Delete a secret. Needs the role ext:manage."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
        install = find_install(client, extension, tenant=tenant)
        address = f"/installs/{path_segment(str(install['install_id']))}/secrets/{path_segment(name)}"
        client.admin("DELETE", address, params={"tenant_id": tenant})
        result({"removed": name}, as_json=as_json, text=f"{visible(name)} removed")


@secrets.command("keygen")
def keygen(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the two files go; nothing is overwritten.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a key pair: secrets.private.jwk for daemons, secrets.public.jwk for gateways. Whoever has the former can read every secret."""
    with endings(as_json=as_json), file_errors():
        try:
            pair = generate_key_pair(folder)
        except SecretKeyError as exc:
            message = f"{exc}."
            raise UsageError(message) from exc
        document = {"private": str(pair.private_file), "public": str(pair.public_file), "key": pair.kek_id}
        result(document, as_json=as_json, text=f"{pair.private_file} (daemons), {pair.public_file} (gateways), key {pair.kek_id}")


def _value(file: Path | None, *, exact: bool) -> str:
    if file is not None:
        with file.open("rb") as stream:
            data = stream.read(_MAX_INPUT_BYTES + 1)
    elif sys.stdin.isatty():
        data = getpass.getpass("value: ").encode()
    else:
        data = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
    try:
        value = data.decode()
    except UnicodeDecodeError:
        message = "The value is not UTF-8 text; encode it, for example as base64."
        raise UsageError(message) from None
    if not exact:
        value = value.removesuffix("\n").removesuffix("\r")
    if not value or len(data) > _MAX_INPUT_BYTES:
        message = f"A value has 1 to {MAX_VALUE_BYTES} bytes."
        raise UsageError(message)
    return value
