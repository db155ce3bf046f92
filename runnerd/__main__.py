"""`runnerd`: reads the settings, serves until it is told to stop, then finishes what has begun."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

import structlog
import uvloop

from registry.database import UnsafeDatabaseRoleError
from registry.domain.errors import RefusalError
from registry.key_sets import KeySetError
from registry.logs import configure_logs
from registry.provenance.domains import TrustConfigurationError
from runnerd.app import package_version, run
from runnerd.artifacts.keys import ArtifactKeyError
from runnerd.assets.supervisor import AssetsStartError
from runnerd.config import RunnerdSettings, SettingsError, load
from runnerd.dispatch.connection import NotHardenedError, UnusableWorkerError
from runnerd.dispatch.memory import NotEnoughMemoryError
from runnerd.worker import kernel

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
        settings = load()
    except SettingsError as error:
        sys.stderr.write(f"runnerd: {error}\n")
        return EXIT_BAD_SETTINGS
    if options.print_config:
        sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
        return 0
    configure_logs("runnerd", level=settings.log_level)
    _announce(settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except SettingsError as error:
        _log.error("bad_settings", detail=str(error))
        return EXIT_BAD_SETTINGS
    except NotHardenedError as error:
        _log.error("cannot_start", detail=str(error))
        return EXIT_NOT_HARDENED
    except (
        ArtifactKeyError,
        AssetsStartError,
        KeySetError,
        NotEnoughMemoryError,
        OSError,
        RefusalError,
        RuntimeError,
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
    parser.add_argument("--version", action="version", version=f"runnerd {package_version()}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
