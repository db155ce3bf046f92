"""Entry of the benchmark; `scripts/bench` makes the environment and then runs this.

Each section is a module beside this one with one function, `measure(bench) -> figures`. It prints what it cannot measure here and leaves
those figures out; the figures of all sections are one object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Final

from registry.cli.development import DevelopmentMachine
from registry.cli.state import state_at
from scripts.benchmark.bench import Bench, Figures
from scripts.benchmark.plot import draw
from scripts.benchmark.stand_ins import stand_ins

SECTIONS: Final = ("throughput", "latency", "overhead", "echo", "host_calls", "storage", "egress", "limits", "memory", "fairness", "cold")
"""In the order in which they run: those that start the daemon anew come last."""

_ROOM: Final = {"RUNNERD_EVENTS__PER_MINUTE": "1000000", "RUNNERD_EVENTS__PER_DAY": "1000000"}
"""A measurement publishes more than an install may."""


def main() -> int:
    """Measure and print."""
    parser = _parser()
    options = parser.parse_args()
    if options.plot_from is not None:
        if options.plot is None:
            parser.error("--plot-from needs --plot")
        options.plot.write_text(draw(json.loads(options.plot_from.read_text("utf-8"))), "utf-8")
        return 0
    figures: Figures = {"date": datetime.now(UTC).date().isoformat(), "quick": options.quick}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="extrunner-bench-") as folder:
        work = Path(folder)
        with (
            stand_ins(work) as (web, settings),
            DevelopmentMachine(state_at(work / "state"), say=print, settings={**settings, **_ROOM}) as machine,
        ):
            bench = Bench(machine=machine, work=work, quick=options.quick, web=web)
            for name in options.only or SECTIONS:
                bench.step(name)
                started = time.monotonic()
                figures |= _section(name)(bench)
                bench.say(f"{name} took {time.monotonic() - started:.1f} s")
            figures["missing"] = bench.report.missing
    figures["seconds"] = round(time.monotonic() - began, 1)
    print()
    for name, value in _lines(figures):
        print(f"{name:<56} {value}")
    if options.plot is not None:
        options.plot.write_text(draw(figures), "utf-8")
    if options.json:
        print(json.dumps(figures))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures a development machine of its own.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute once the guests are built")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--only", action="append", choices=SECTIONS, metavar="SECTION", help=f"one section; repeat for more: {SECTIONS}")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios as an SVG")
    parser.add_argument("--plot-from", type=Path, metavar="JSON", help="with --plot: draw figures of an earlier run and measure nothing")
    return parser


def _section(name: str) -> Callable[[Bench], Figures]:
    measure: Callable[[Bench], Figures] = import_module(f"scripts.benchmark.{name}").measure
    return measure


def _lines(figures: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Flatten dicts of figures into dotted names."""
    lines: list[tuple[str, object]] = []
    for name, value in figures.items():
        lines += _lines(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return lines


if __name__ == "__main__":
    sys.exit(main())
