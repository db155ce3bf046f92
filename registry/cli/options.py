"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry.cli.state import DEFAULT_STATE

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
StateOption = Annotated[
    Path,
    typer.Option("--state", envvar="EXTCTL_STATE", metavar="FOLDER", help="State folder of the development machine."),
]
GatewayOption = Annotated[
    str | None,
    typer.Option(
        "--gateway", envvar="EXTCTL_GATEWAY", metavar="URL", help="Address of the gateway; that of the development machine if absent."
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="File that holds a bearer token. Otherwise EXTCTL_TOKEN, otherwise one minted by the development machine.",
    ),
]
TenantOption = Annotated[str, typer.Option("--tenant", envvar="EXTCTL_TENANT", metavar="ID", help="The tenant.")]
InstallArgument = Annotated[str, typer.Argument(metavar="INSTALL", help="Id of the install.")]
DEFAULT_STATE_FOLDER = DEFAULT_STATE
