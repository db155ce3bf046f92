"""`extctl up`: everything on this machine, until Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from registry.cli.development import DevelopmentMachine
from registry.cli.options import DEFAULT_STATE_FOLDER, StateOption
from registry.cli.output import endings, say, warn
from registry.cli.rendering import visible
from registry.cli.state import Addresses, MachineState, state_at

_CHECK_SECONDS: Final = 0.5


def up(state: StateOption = DEFAULT_STATE_FOLDER) -> None:
    """Run a whole installation on this machine: keys, PostgreSQL, daemon and gateway. For development only. Ctrl-C stops it."""
    with endings(as_json=False), one_interrupt():
        try:
            with DevelopmentMachine(state_at(state), say=warn) as machine:
                say(where_to_look(machine.state, machine.addresses))
                run_until_interrupted(machine)
        except KeyboardInterrupt:
            warn("stopped")


def run_until_interrupted(machine: DevelopmentMachine) -> None:
    """Watch the services until Ctrl-C.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM.
        UnavailableError: a service ended.
    """
    while True:
        time.sleep(_CHECK_SECONDS)
        machine.check()


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Make SIGTERM what Ctrl-C is, and ignore both after the first: stopping is bounded in time and must not be cut short."""
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def where_to_look(state: MachineState, addresses: Addresses) -> str:
    """Return what to try next, as text."""
    folder = visible(str(state.root))
    return f"""
  calls       {addresses.gateway}/api/ext/EXTENSION/PATH (bearer token: extctl token user --tenant TENANT)
  admin       {addresses.gateway}/api/admin/v1/openapi.json (bearer token: … --role ext:manage)
  gRPC        {addresses.grpc}, extrunner.runner.v1.RunnerService (extctl token service --tenant TENANT --scope execute)
  interfaces  {addresses.assets}/ext-ui/EXTENSION/CONTENT_HASH/index.html
  metrics     {addresses.operations}/metrics, {addresses.gateway}/metrics
  logs        {folder}/logs
  state       {folder} (NON-PRODUCTION keys; delete the folder to begin anew)

Ctrl-C stops everything."""
