"""Entry of the demonstration; `scripts/demo` makes the environment and then runs this."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from registry.cli.development import DevelopmentMachine
from registry.cli.output import ProblemError, UnavailableError, UsageError
from registry.cli.rendering import visible
from registry.cli.state import state_at
from registry.cli.up import one_interrupt, run_until_interrupted, where_to_look
from registry.domain.errors import RefusalError
from scripts.demonstration.report import CheckFailedError, Report
from scripts.demonstration.samples import ROOT
from scripts.demonstration.steps import ACME, Demonstration, build_samples

_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration. Returns 0 where everything shown held, 1 where something did not, 130 where it was interrupted before."""
    options = _parser().parse_args(arguments)
    report = Report()
    interrupted = False
    with one_interrupt():
        try:
            _show(report, options.state, once=options.once)
        except KeyboardInterrupt:
            interrupted = not report.facts.get("complete", False)
            print("\nstopped" if not interrupted else "\ninterrupted", file=sys.stderr)
        except (CheckFailedError, ProblemError, RefusalError, UnavailableError, UsageError) as error:
            report.fail(str(error))
        except Exception as error:  # noqa: BLE001 - a mistake of ours; whoever reads the last line is told all the same
            traceback.print_exc()
            report.fail(f"{type(error).__name__}: {error}")
    if report.failures:
        print(f"   what the services said is in {visible(str(state_at(options.state).logs))}", file=sys.stderr)
    if options.once:
        if interrupted:
            report.fail("interrupted")
        report.print_json()
    if interrupted:
        return _INTERRUPTED
    return 0 if report.is_ok else 1


def _show(report: Report, state: Path, *, once: bool) -> None:
    samples = build_samples(report, state.absolute() / "demo")
    report.step("start PostgreSQL, the daemon and the gateway")
    with DevelopmentMachine(state_at(state), say=lambda line: report.show(visible(line))) as machine:
        Demonstration(machine=machine, report=report, samples=samples, work=state.absolute() / "demo").run()
        report.facts["complete"] = True
        if once:
            return
        name = samples[0].name
        print(
            f"""
Everything shown was checked. Look around while it runs (from another terminal, with .venv/bin in the path):
{where_to_look(machine.state, machine.addresses)}

  extctl invoke {name} /notes --tenant {ACME} --state {visible(str(state))}
  extctl invoke {name} / --tenant {ACME} --grpc --state {visible(str(state))}
  extctl executions --tenant {ACME} --state {visible(str(state))}
  sources     examples/, docs/architecture.md, SECURITY.md
""",
            flush=True,
        )
        run_until_interrupted(machine)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Builds the example extensions from source, signs, publishes and installs them for two tenants, starts everything on "
        "this machine, calls them over HTTP and gRPC, and shows what is refused. Runs until Ctrl-C.",
    )
    parser.add_argument("--once", action="store_true", help="stop when everything was shown; the last line is one JSON object")
    parser.add_argument("--state", type=Path, default=ROOT / ".dev", metavar="FOLDER", help="state folder (default: .dev)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
