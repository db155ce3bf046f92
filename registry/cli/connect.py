"""From options to a connected client: which gateway, as whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from registry.cli.credentials import Credentials
from registry.cli.gateway_client import GatewayClient
from registry.cli.output import UsageError
from registry.cli.state import MachineState, state_at

_DEFAULT_GATEWAY: Final = "http://127.0.0.1:8080"


@contextmanager
def connected(gateway: str | None, state: Path, token_file: Path | None, *, tenant: str, roles: Iterable[str]) -> Iterator[GatewayClient]:
    """Open a client of the gateway.

    Args:
        gateway: its address; None finds the development machine's.
        state: state folder of the development machine.
        token_file: file with a token; None takes the environment's, or mints one.
        tenant: whose token to mint.
        roles: the roles to mint it with.
    """
    machine = state_at(state)
    token = Credentials(machine, token_file).user_token(tenant=tenant, roles=roles)
    with GatewayClient(gateway_address(gateway, machine), token) as client:
        yield client


def gateway_address(gateway: str | None, state: MachineState) -> str:
    """Return the address to call."""
    if gateway is not None:
        return gateway
    addresses = state.addresses()
    return _DEFAULT_GATEWAY if addresses is None else addresses.gateway


def path_segment(text: str) -> str:
    """Return `text` as one segment of a path: never two, never a step up.

    Raises:
        UsageError: it cannot be one.
    """
    if not text or text in {".", ".."}:
        message = f"{text!a} is no name."
        raise UsageError(message)
    return quote(text, safe="")


def items_of(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects on a page of a list."""
    items = page.get("items")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
