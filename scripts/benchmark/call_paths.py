"""One component on both call paths: how many times as long a call takes without the bridge, by size of the body that it echoes.

Started by the echo section as `python -m scripts.benchmark.call_paths COMPONENT`; prints one JSON object.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from wasmtime import component

from runnerd.engine.calls import Call, GuestRequest
from runnerd.engine.compilation import CompiledComponent, compile_component
from runnerd.engine.engine import Ticker, build_engine
from runnerd.engine.invocation import LoadedComponent, prepare_process, run_call
from runnerd.engine.journal import Journal
from runnerd.engine.outcomes import Completed
from runnerd.engine.profile import DEFAULT_PROFILE, EngineProfile, PoolSizes
from scripts.benchmark.ceiling import CONTEXT, LIMITS, NoHost

_SIZES: Final = {"1KiB": 1024, "100KiB": 100 * 1024, "1MiB": 1024 * 1024}
"""What both paths carry."""
_ROUNDS: Final = 15


def main(component_file: Path) -> dict[str, dict[str, float]]:
    """Return the ratios."""
    wasm = component_file.read_bytes()
    # In a process of its own: an engine that has compiled keeps its threads.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        bridged, ordinary = pool.starmap(compile_component, [(wasm, EngineProfile(bridge=True)), (wasm, EngineProfile(bridge=False))])
    engine = build_engine(DEFAULT_PROFILE, PoolSizes.for_slots(1))
    prepare_process()
    ticker = Ticker(engine)
    ticker.start()

    def load(compiled: CompiledComponent) -> LoadedComponent:
        code = component.Component.deserialize(engine, compiled.artifact)
        return LoadedComponent(engine, code, memories=compiled.memories, bridged=compiled.bridged)

    paths = (load(bridged), load(ordinary))
    return {"echo_ordinary_path_ratio": {name: _ratio(paths, b"\xff" * size, ticker) for name, size in _SIZES.items()}}


def _ratio(paths: tuple[LoadedComponent, LoadedComponent], body: bytes, ticker: Ticker) -> float:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for loaded, taken in zip(paths, times, strict=True):
            began = time.perf_counter()
            _echo(loaded, body, ticker)
            taken.append(time.perf_counter() - began)
    return round(statistics.median(times[1]) / statistics.median(times[0]), 2)


def _echo(loaded: LoadedComponent, body: bytes, ticker: Ticker) -> None:
    limits = replace(LIMITS, memory_bytes=256 * 1024 * 1024)
    journal = Journal(lambda _lines: None, max_lines=limits.log_lines, max_bytes=limits.log_bytes)
    call = Call(context=CONTEXT, limits=limits, capabilities=frozenset(), journal=journal, port=NoHost())
    outcome = run_call(loaded, call, GuestRequest(method="POST", url="/echo", headers=(), body=body), ticker).outcome
    if not isinstance(outcome, Completed) or outcome.body != body:
        message = f"the guest ended as {type(outcome).__name__}"
        raise TypeError(message)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
