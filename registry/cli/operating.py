"""`extctl deny`, `extctl executions` and `extctl metrics`: what operators and administrators do with what runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from registry.cli.connect import connected, items_of, path_segment
from registry.cli.options import DEFAULT_STATE_FOLDER, GatewayOption, JsonOption, StateOption, TenantOption, TokenFileOption
from registry.cli.output import endings, result
from registry.cli.rendering import table, visible
from registry.tokens import ANY_TENANT

MAX_PAGE = 100


def deny(  # noqa: PLR0913 - options
    content_hash: Annotated[str, typer.Argument(metavar="HASH", help='"sha256:" and 64 digits, as `pack` printed it.')],
    *,
    reason: Annotated[str, typer.Option(help="Why; kept with the revocation.")],
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Revoke a bundle for every tenant, published or not. Nothing takes it back. Needs the role ext:operate."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=ANY_TENANT, roles=["ext:operate"]) as client:
        done = client.admin("POST", "/denylist", json={"content_hash": content_hash, "reason": reason})
        text = f"{visible(content_hash)} {'is revoked' if done.get('added') else 'was revoked before'}"
        result(done, as_json=as_json, text=text)


def executions(  # noqa: PLR0913 - options
    execution: Annotated[str | None, typer.Argument(metavar="EXECUTION", help="Id of one execution: show everything about it.")] = None,
    *,
    tenant: TenantOption,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="How many, newest first.")] = 20,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """List a tenant's executions, or show one with its log lines and denials. Needs the role ext:read."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=["ext:read"]) as client:
        if execution is None:
            page = client.admin("GET", "/executions", params={"tenant_id": tenant, "limit": limit})
            columns = ["started_at", "method", "endpoint", "outcome", "reason", "http_status", "wall_ms", "fuel", "execution_id"]
            result(page, as_json=as_json, text=table(items_of(page), columns))
            return
        found = client.admin("GET", f"/executions/{path_segment(execution)}", params={"tenant_id": tenant})
        rows = [{"field": name, "value": value} for name, value in found.items() if name not in {"log", "denials"}]
        parts = [table(rows, ["field", "value"])]
        parts += [
            f"denied  {visible(str(denial.get('capability')))}: {visible(str(denial.get('why')))}. {visible(str(denial.get('change')))}"
            for denial in items_of({"items": found.get("denials")})
        ]
        parts += [_log_line(line) for line in items_of({"items": found.get("log")})]
        result(found, as_json=as_json, text="\n".join(parts))


def _log_line(line: Mapping[str, Any]) -> str:
    offset, stream, level, message = (visible(str(line.get(name, ""))) for name in ("offset_us", "stream", "level", "message"))
    return f"log     +{offset} µs  {stream} {level}  {message}{' (cut)' if line.get('truncated') else ''}"


def metrics(  # noqa: PLR0913 - options
    install: Annotated[str, typer.Argument(metavar="INSTALL", help="Id of the install; `extctl installs list` names it.")],
    *,
    tenant: TenantOption,
    forget: Annotated[
        bool, typer.Option("--forget", help="Delete the series instead: names, their kinds and the room are free again.")
    ] = False,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Show what an install measured about itself. Needs the role ext:read; to forget it, ext:manage."""
    role = "ext:manage" if forget else "ext:read"
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=[role]) as client:
        path = f"/installs/{path_segment(install)}/metrics"
        if forget:
            client.admin("DELETE", path, params={"tenant_id": tenant})
            result({"install_id": install, "forgotten": True}, as_json=as_json, text=f"forgot what {visible(install)} measured")
            return
        found = client.admin("GET", path, params={"tenant_id": tenant})
        result(found, as_json=as_json, text=table(items_of(found), ["name", "kind", "labels", "value", "count", "observed_at"]))
