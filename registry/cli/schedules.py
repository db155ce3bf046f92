"""`extctl schedules`: what an install wants to be called at, and how to stop it."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from registry.cli.connect import connected, items_of, path_segment
from registry.cli.options import (
    DEFAULT_STATE_FOLDER,
    GatewayOption,
    InstallArgument,
    JsonOption,
    StateOption,
    TenantOption,
    TokenFileOption,
)
from registry.cli.output import endings, result
from registry.cli.rendering import table, visible

_ROLES: Final = ["ext:manage"]

schedules = typer.Typer(no_args_is_help=True, help="Schedules of an install: list, disable, enable, remove.")

ScheduleArgument = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Id of the schedule.")]


@schedules.command("list")
def list_schedules(  # noqa: PLR0913 - options
    install_id: InstallArgument,
    *,
    tenant: TenantOption,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """List what an extension scheduled; with --json their payloads, too."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
        page = client.admin("GET", f"/installs/{path_segment(install_id)}/schedules", params={"tenant_id": tenant})
        columns = ["name", "endpoint", "has_endpoint", "cron", "timezone", "is_active", "stopped_by", "last_run_at", "schedule_id"]
        result(page, as_json=as_json, text=table(items_of(page), columns))


@schedules.command("enable")
def enable(  # noqa: PLR0913 - options
    install_id: InstallArgument,
    schedule_id: ScheduleArgument,
    *,
    tenant: TenantOption,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Let a schedule run, also one that was disabled here."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
        changed = client.admin("PATCH", _address(install_id, schedule_id), params={"tenant_id": tenant}, json={"enabled": True})
        result(changed, as_json=as_json, text=f"{visible(schedule_id)} enabled")


@schedules.command("disable")
def disable(  # noqa: PLR0913 - options
    install_id: InstallArgument,
    schedule_id: ScheduleArgument,
    *,
    tenant: TenantOption,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Stop a schedule; its extension cannot enable it again."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
        changed = client.admin("PATCH", _address(install_id, schedule_id), params={"tenant_id": tenant}, json={"enabled": False})
        result(changed, as_json=as_json, text=f"{visible(schedule_id)} disabled")


@schedules.command("remove")
def remove(  # noqa: PLR0913 - options
    install_id: InstallArgument,
    schedule_id: ScheduleArgument,
    *,
    tenant: TenantOption,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Delete a schedule. Its extension may make another one as long as it has the capability."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=tenant, roles=_ROLES) as client:
        client.admin("DELETE", _address(install_id, schedule_id), params={"tenant_id": tenant})
        result({"removed": schedule_id}, as_json=as_json, text=f"{visible(schedule_id)} removed")


def _address(install_id: str, schedule_id: str) -> str:
    return f"/installs/{path_segment(install_id)}/schedules/{path_segment(schedule_id)}"
