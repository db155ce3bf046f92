"""`runnerd`: reads the settings, serves until it is told to stop, then finishes what has begun."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog
import uvloop

from registry.database import UnsafeDatabaseRoleError
from registry.domain.errors import RefusalError
from registry.key_sets import KeySetError
from registry.logs import configure_logs
from registry.provenance.domains import TrustConfigurationError
from registry.secrets.envelope import SecretEnvelopeError
from registry.secrets.local_keys import SecretKeyError
from runnerd.app import package_version, run, run_cell
from runnerd.artifacts.keys import ArtifactKeyError
from runnerd.capabilities.platform.assembly import PlatformSettingsError
from runnerd.cells.supervisor import CellStartError, supervise
from runnerd.children.keeper import ChildStartError
from runnerd.config import Cell, RunnerdSettings, SettingsError, load
from runnerd.dispatch.capacity import cells_of
from runnerd.dispatch.connection import NotHardenedError, UnusableWorkerError
from runnerd.dispatch.memory import NotEnoughMemoryError
from runnerd.worker import hardening, kernel

EXIT_CANNOT_START = 1
EXIT_BAD_SETTINGS = 2
EXIT_NOT_HARDENED = 3

_log = structlog.get_logger("runnerd")

_EXIT_CODES = """\
exit status:
  0  stopped by SIGTERM or SIGINT after running calls had ended
  1  could not start: database, address, key, trust domain or memory
  2  a setting is missing, malformed, unknown or refused
  3  a mandatory step of hardening is not in force
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        # SECURITY: before the first secret is read; afterwards no other process of this user can read this one's memory (T2).
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    except OSError as error:
        sys.stderr.write(f"runnerd: cannot become non-dumpable: {error}\n")
        return EXIT_NOT_HARDENED
    try:
        settings = load(**({} if options.cells is None else {"cells": options.cells}))
    except SettingsError as error:
        sys.stderr.write(f"runnerd: {error}\n")
        return EXIT_BAD_SETTINGS
    if options.print_config:
        sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
        return 0
    if options.cell is not None:
        hardening.die_with_parent(options.supervisor)
        os.set_inheritable(options.control_fd, False)
    configure_logs("runnerd" if options.cell is None else f"runnerd-{options.cell.index}", level=settings.log_level)
    return _run(_work(settings, options))


def _work(settings: RunnerdSettings, options: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """Choose what this process is: a cell, the supervisor of several, or the whole daemon."""
    if options.cell is not None:
        return run_cell(settings.share_of(options.cell, grpc_port=options.grpc_port), options.cell, options.control_fd)
    _announce(settings)
    cells = cells_of(settings)
    return run(settings) if cells == 1 else supervise(settings, cells)


def _run(work: Coroutine[Any, Any, None]) -> int:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except CellStartError as error:
        # The cell has said why.
        _log.error("cannot_start", detail=str(error))
        return error.status if error.status in {EXIT_CANNOT_START, EXIT_BAD_SETTINGS, EXIT_NOT_HARDENED} else EXIT_CANNOT_START
    except (PlatformSettingsError, SettingsError) as error:
        _log.error("bad_settings", detail=str(error))
        return EXIT_BAD_SETTINGS
    except NotHardenedError as error:
        _log.error("cannot_start", detail=str(error))
        return EXIT_NOT_HARDENED
    except (
        ArtifactKeyError,
        ChildStartError,
        KeySetError,
        NotEnoughMemoryError,
        OSError,
        RefusalError,
        RuntimeError,
        SecretEnvelopeError,
        SecretKeyError,
        TrustConfigurationError,
        UnsafeDatabaseRoleError,
        UnusableWorkerError,
    ) as error:
        _log.error("cannot_start", detail=str(error), kind=type(error).__name__)
        return EXIT_CANNOT_START
    return 0


def _announce(settings: RunnerdSettings) -> None:
    _log.info("starting", version=package_version(), environment=settings.environment.value, public_base=settings.public_base)
    if not settings.is_production:
        _log.warning("development_mode", hint="development keys, trust domains and embedded databases are accepted")
    if not settings.require_hardening:
        _log.warning("hardening_not_required", hint="a worker may run without its second wall; never with foreign code")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="runnerd",
        description="Runs signed WebAssembly extensions for tenants. Settings come from RUNNERD_… variables, nested with '__'.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--print-config", action="store_true", help="print the effective settings as JSON, without secrets, and exit")
    parser.add_argument("--cells", type=int, help="fronts behind the one gRPC port, each with workers of its own (RUNNERD_CELLS)")
    # What a supervisor says to its cells.
    parser.add_argument("--cell", type=_cell, help=argparse.SUPPRESS)
    parser.add_argument("--supervisor", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--grpc-port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--control-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"runnerd {package_version()}")
    return parser


def _cell(text: str) -> Cell:
    index, _, count = text.partition("/")
    return Cell(index=int(index), count=int(count))


if __name__ == "__main__":
    sys.exit(main())
