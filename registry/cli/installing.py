"""`extctl install` and `extctl installs`: what a tenant runs, and what it grants."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import typer

from registry.cli.connect import connected, items_of, path_segment
from registry.cli.gateway_client import GatewayClient
from registry.cli.options import (
    DEFAULT_STATE_FOLDER,
    GatewayOption,
    InstallArgument,
    JsonOption,
    StateOption,
    TenantOption,
    TokenFileOption,
)
from registry.cli.output import ProblemError, Progress, UsageError, endings, result
from registry.cli.rendering import table, visible
from registry.domain.capabilities import normalise

_ROLES: Final = ["ext:manage"]
_BINDING: Final = re.compile(r"([^:@]+):([^:@]+)@([^:@]+)(?::([0-9]{1,5}))?\Z")

installs = typer.Typer(no_args_is_help=True, help="Installs of a tenant: list, enable, disable, remove.")


def install(  # noqa: PLR0913 - options
    extension: Annotated[str, typer.Argument(metavar="EXTENSION", help="Name or id of the extension.")],
    *,
    tenant: TenantOption,
    version: Annotated[str | None, typer.Option(help="Version; the latest if absent, with --update the one installed.")] = None,
    grant: Annotated[
        list[str] | None, typer.Option(metavar="CAPABILITY", help="Grant a capability that the extension asks for; may be repeated.")
    ] = None,
    grant_nothing: Annotated[bool, typer.Option("--grant-nothing", help="Decide to grant nothing.")] = False,
    config: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A setting; may be repeated.")] = None,
    endpoint_policy: Annotated[
        str | None,
        typer.Option("--endpoint-policy", help="enforce: refuse paths that the manifest does not declare; advisory (usual): pass them on."),
    ] = None,
    update: Annotated[
        bool,
        typer.Option("--update", help="Where it is installed: replace version, grants, settings or policy by those named; the rest stays."),
    ] = False,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Install a published extension for a tenant. What is not granted is refused when the extension tries it. Needs the role ext:manage."""
    with endings(as_json=as_json):
        if grant and grant_nothing:
            message = "--grant and --grant-nothing contradict each other."
            raise UsageError(message)
        wanted: dict[str, Any] = {
            "extension": extension,
            "version": version,
            "granted": [_capability(name) for name in grant or []] if grant or grant_nothing else None,
            "config": settings_of(config) if config else None,
            "endpoint_policy": endpoint_policy,
        }
        with connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client, Progress(f"installing {extension}"):
            made = install_or_update(client, wanted, tenant=tenant, update=update)
        granted = ", ".join(made.get("granted") or []) or "nothing"
        is_now = f"{visible(extension)} {visible(str(made.get('version')))} is installed"
        text = f"{is_now} for {visible(tenant)}, granted {visible(granted)}, endpoints {visible(str(made.get('endpoint_policy')))}"
        result(made, as_json=as_json, text=text)


@installs.command("list")
def list_installs(
    *,
    tenant: TenantOption,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """List what a tenant has installed (the first hundred)."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
        page = client.admin("GET", "/installs", params={"tenant_id": tenant, "limit": 100})
        columns = ["extension_name", "version", "publisher", "is_enabled", "granted", "install_id"]
        result(page, as_json=as_json, text=table(items_of(page), columns))


@installs.command("set")
def set_enabled(  # noqa: PLR0913 - options
    install_id: InstallArgument,
    *,
    enabled: Annotated[bool, typer.Option("--enable/--disable", help="Whether it may be called.")],
    tenant: TenantOption,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Enable or disable an install."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
        changed = _change(client, install_id, tenant, {"enabled": enabled})
        result(changed, as_json=as_json, text=f"{visible(install_id)} {'enabled' if enabled else 'disabled'}")


@installs.command("limits")
def set_limits(  # noqa: PLR0913 - options
    install_id: InstallArgument,
    *,
    limit: Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help="Such as storage_bytes=1000000; repeatable.")] = None,
    default: Annotated[bool, typer.Option("--default", help="Leave all of them to the operator's defaults.")] = False,
    tenant: TenantOption,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Give an install other limits: all that it is given are named anew, the rest is the operator's default."""
    with endings(as_json=as_json):
        if bool(limit) == default:
            message = "Give either --limit (as often as needed) or --default."
            raise UsageError(message)
        limits = {name: _number(value) for name, value in settings_of(limit or []).items()}
        with connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
            changed = _change(client, install_id, tenant, {"limits": limits})
        given = ", ".join(f"{name}={value}" for name, value in sorted(limits.items())) or "those of the operator"
        result(changed, as_json=as_json, text=f"{visible(install_id)}: limits {visible(given)}")


@installs.command("hosts")
def set_hosts(  # noqa: PLR0913 - options
    install_id: InstallArgument,
    *,
    tenant: TenantOption,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help='Leave this host of those that it declares, or "*.HOST" for names below it; may be repeated.'),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Leave none.")] = False,
    as_declared: Annotated[bool, typer.Option("--as-declared", help="Leave all of them.")] = False,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Say which of the hosts that an extension declares it may reach with http.fetch. Needs the role ext:manage."""
    with endings(as_json=as_json):
        if bool(host) + none + as_declared != 1:
            message = "Give exactly one of --host (as often as needed), --none, --as-declared."
            raise UsageError(message)
        hosts = None if as_declared else host or []
        with connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
            changed = _change(client, install_id, tenant, {"egress": {"hosts": hosts}})
        left = "every host that it declares" if hosts is None else visible(", ".join(hosts)) or "no host"
        result(changed, as_json=as_json, text=f"{visible(install_id)} may reach {left}")


@installs.command("bind-secrets")
def bind_secrets(  # noqa: PLR0913 - options
    install_id: InstallArgument,
    *,
    tenant: TenantOption,
    bind: Annotated[
        list[str] | None,
        typer.Option(metavar="SECRET:HEADER@HOST[:PORT]", help="All that are bound from now on; may be repeated."),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Bind none.")] = False,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Have secrets put into a header of requests to one host, where the extension writes {{secret:NAME}}. Needs the role ext:manage.

    The host can always reveal what it is sent: never bind one that stores or shows it.
    """
    with endings(as_json=as_json):
        if bool(bind) == none:
            message = "Give either --bind (as often as needed) or --none."
            raise UsageError(message)
        bindings = [_binding(text) for text in bind or []]
        with connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
            changed = _change(client, install_id, tenant, {"egress_secrets": bindings})
        result(changed, as_json=as_json, text=f"{visible(install_id)}: {len(bindings)} secrets are bound to hosts")


@installs.command("count-hosts")
def count_hosts(  # noqa: PLR0913 - options
    install_id: InstallArgument,
    *,
    days: Annotated[int, typer.Option(min=0, max=14, help="For how many days from now; 0 ends it.")],
    tenant: TenantOption,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Have requests to hosts off an install's list pass for some days, counted and explained. Needs the role ext:operate."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=["ext:operate"]) as client:
        changed = _change(client, install_id, tenant, {"egress_count_days": days})
        until = f"only counted until {visible(str(changed['egress']['count_until']))}" if days else "enforced"
        result(changed, as_json=as_json, text=f"{visible(install_id)}: the list of hosts is {until}")


@installs.command("remove")
def remove(  # noqa: PLR0913 - options
    install_id: InstallArgument,
    *,
    tenant: TenantOption,
    purge: Annotated[bool, typer.Option("--purge", help="Also delete its settings and stored data.")] = False,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Uninstall. Settings and stored data stay for the next install of the same extension, unless --purge."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
        client.admin("DELETE", f"/installs/{path_segment(install_id)}", params={"tenant_id": tenant, "purge": purge})
        result({"removed": install_id, "purged": purge}, as_json=as_json, text=f"{visible(install_id)} removed")


def _change(client: GatewayClient, install_id: str, tenant: str, document: dict[str, Any]) -> dict[str, Any]:
    return client.admin("PATCH", f"/installs/{path_segment(install_id)}", params={"tenant_id": tenant}, json=document)


def install_or_update(client: GatewayClient, wanted: dict[str, Any], *, tenant: str, update: bool) -> dict[str, Any]:
    """Install, or where that is allowed and it is installed already, replace what `wanted` names; what is None there stays.

    Raises:
        ProblemError: refused.
    """
    scope = {"tenant_id": tenant}
    named = {name: value for name, value in wanted.items() if value is not None}
    try:
        return client.admin("POST", "/installs", params=scope, json=named)
    except ProblemError as problem:
        if problem.reason != "ALREADY_INSTALLED":
            raise
        if not update:
            detail = "The extension is installed already; change it with --update."
            raise problem.saying(detail) from problem
    found = find_install(client, str(wanted["extension"]), tenant=tenant)
    address = f"/installs/{path_segment(str(found['install_id']))}"
    if any(name in named and named[name] != found.get(name) for name in ("version", "endpoint_policy")):
        kept = {name: found.get(name) for name in ("version", "endpoint_policy", "granted")}
        hosts = (found.get("egress") or {}).get("hosts")
        # What the tenant took away does not come back with another version.
        kept |= {} if hosts is None else {"egress_hosts": hosts}
        kept |= {"limits": found["limits"]} if found.get("limits") else {}
        return _reinstall(client, address, scope, kept | named)
    for name in ("granted", "config"):
        if name in named:
            found = client.admin("PATCH", address, params=scope, json={name: named[name]})
    return found


def _reinstall(client: GatewayClient, address: str, scope: dict[str, str], wanted: dict[str, Any]) -> dict[str, Any]:
    """Let another version, or the same under another policy, take the place of an install. Its stored data and settings stay."""
    client.admin("DELETE", address, params=scope)
    try:
        return client.admin("POST", "/installs", params=scope, json=wanted)
    except ProblemError as problem:
        detail = f"The old version was removed and {wanted['version']} was not installed; install one of them again. {problem.detail}"
        raise problem.saying(detail) from problem


def find_install(client: GatewayClient, extension: str, *, tenant: str) -> dict[str, Any]:
    """Return a tenant's install of an extension (name or id).

    Raises:
        ProblemError: EXTENSION_NOT_INSTALLED.
    """
    cursor: str | None = None
    while True:
        page = client.admin("GET", "/installs", params={"tenant_id": tenant, "limit": 100} | ({"cursor": cursor} if cursor else {}))
        for item in items_of(page):
            if extension in {item.get("extension_name"), item.get("extension_id")}:
                return item
        cursor = page.get("next_cursor")
        if not cursor:
            raise ProblemError(reason="EXTENSION_NOT_INSTALLED", detail=f"{extension} is not installed for this tenant.", status="404")


def settings_of(pairs: list[str]) -> dict[str, str]:
    """Read KEY=VALUE pairs.

    Raises:
        UsageError: one is no pair, or a key comes twice.
    """
    settings: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key or key in settings:
            message = f"{pair!a} is not KEY=VALUE with a key of its own."
            raise UsageError(message)
        settings[key] = value
    return settings


def _binding(text: str) -> dict[str, Any]:
    found = _BINDING.match(text)
    if found is None:
        message = f"{text!a} is not SECRET:HEADER@HOST or SECRET:HEADER@HOST:PORT."
        raise UsageError(message)
    secret, header, host, port = found.groups()
    return {"secret": secret, "header": header.lower(), "host": host.lower(), "port": int(port or 443)}


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        message = "A limit is NAME=NUMBER."
        raise UsageError(message)
    return int(text)


def _capability(name: str) -> str:
    try:
        return normalise(name)
    except ValueError as exc:
        message = f"{exc}."
        raise UsageError(message) from exc
