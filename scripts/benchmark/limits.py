"""How late a guest that computes for ever is cut, with 4 and with 50 of them on one CPU.

The documented bounds (N15) are two ticks of 10 ms, and 150 ms. Measured through the worker's own code in one pinned process, without a
daemon. Started by `measure` as `python -m scripts.benchmark.limits ROUNDS`; prints one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Final

import wasmtime
from wasmtime import component

from runnerd.engine.calls import Call, GuestRequest
from runnerd.engine.compilation import compile_component
from runnerd.engine.engine import Ticker, build_engine
from runnerd.engine.invocation import Finished, LoadedComponent, prepare_process, run_call
from runnerd.engine.journal import Journal
from runnerd.engine.outcomes import LimitExceeded, LimitKind
from runnerd.engine.profile import DEFAULT_PROFILE, PoolSizes
from scripts.benchmark.bench import Bench, Figures
from scripts.benchmark.ceiling import CONTEXT, LIMITS, NoHost
from scripts.demonstration.samples import ROOT

CROWDS: Final = (4, 50)
_GUEST: Final = Path(__file__).parent / "neighbours" / "guest.wat"
_LOOP: Final = "(loop $again (br $again))"
_WALL_SECONDS: Final = 0.5


def measure(bench: Bench) -> Figures:
    """Return the lateness by how many guests compute at once: milliseconds behind the deadline, the latest of a crowd, median of rounds."""
    rounds = 1 if bench.quick else 7
    command = [sys.executable, "-m", "scripts.benchmark.limits", str(rounds)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    figures: Figures = json.loads(answer.stdout)
    bench.say(", ".join(f"{name} {value}" for name, value in figures.items()))
    return figures


def main(rounds: int) -> dict[str, float]:
    """Run the crowds on one CPU."""
    compiled = compile_component(bytes(wasmtime.wat2wasm(_GUEST.read_text("utf-8").replace("BEHAVIOUR", _LOOP))))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    engine = build_engine(DEFAULT_PROFILE, PoolSizes.for_slots(max(CROWDS)))
    prepare_process()
    code = component.Component.deserialize(engine, compiled.artifact)
    loaded = LoadedComponent(engine, code, memories=compiled.memories, bridged=compiled.bridged)
    ticker = Ticker(engine)
    ticker.start()
    return {f"cut_late_ms_{crowd}": round(statistics.median(_latest(loaded, ticker, crowd) for _ in range(rounds)), 1) for crowd in CROWDS}


def _latest(loaded: LoadedComponent, ticker: Ticker, crowd: int) -> float:
    """Return how many milliseconds behind its deadline the latest of a crowd ended."""
    finished: list[Finished] = []
    limits = replace(LIMITS, wall_seconds=_WALL_SECONDS, cpu_seconds=30.0, fuel=1 << 62)

    def loop() -> None:
        journal = Journal(lambda _lines: None, max_lines=1, max_bytes=1)
        call = Call(context=CONTEXT, limits=limits, capabilities=frozenset(), journal=journal, port=NoHost())
        finished.append(run_call(loaded, call, GuestRequest(method="GET", url="/", headers=(), body=None), ticker))

    threads = [threading.Thread(target=loop) for _ in range(crowd)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for end in finished:
        if not isinstance(end.outcome, LimitExceeded) or end.outcome.limit is not LimitKind.WALL_TIME:
            message = f"a guest ended as {end.outcome}"
            raise TypeError(message)
    return (max(end.wall_seconds for end in finished) - _WALL_SECONDS) * 1000


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
