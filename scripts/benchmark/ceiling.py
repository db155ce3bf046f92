"""The machine's ceiling: one pinned process for each CPU that calls the engine in a loop, through the worker's own code, without any RPC.

Started by the throughput section as `python -m scripts.benchmark.ceiling COMPONENT SECONDS [PROCESSES]`; prints one JSON object.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wasmtime import component

from runnerd.capabilities.catalog import HostFunction
from runnerd.engine.calls import Call, GuestContext, GuestRequest, HostPort
from runnerd.engine.engine import Ticker, build_engine
from runnerd.engine.invocation import LoadedComponent, prepare_process, run_call
from runnerd.engine.journal import Journal
from runnerd.engine.limits import InvocationLimits
from runnerd.engine.outcomes import Completed
from runnerd.engine.profile import DEFAULT_PROFILE, PoolSizes
from tests.fakes.guests import compiled_of

_MIB = 1024 * 1024
_WARM_SECONDS = 0.5
CONTEXT = GuestContext(request_id="ceiling", tenant_id="bench", extension_id="com.example.hello", install_id="i", version_id="v")
LIMITS = InvocationLimits(
    wall_seconds=5,
    cpu_seconds=5,
    fuel=10_000_000_000,
    memory_bytes=64 * _MIB,
    response_bytes=2 * _MIB,
    host_calls=100,
    log_lines=100,
    log_bytes=64 * 1024,
)


class NoHost:
    """A host without capabilities: the guest makes no host call."""

    def call(self, function: HostFunction, arguments: Sequence[object], *, timeout_seconds: float) -> tuple[object, str | None]:
        """Refuse: nothing is granted, so nothing gets here."""
        message = f"{function.qualified_name} of {len(arguments)} arguments, {timeout_seconds} s"
        raise ConnectionError(message)


def main(component_file: Path, seconds: float, processes: int | None = None) -> dict[str, float]:
    """Run the loops at the same time and return calls a second and CPU microseconds of a call. What was compiled once is in .cache."""
    cpus = sorted(os.sched_getaffinity(0))[:processes]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="extrunner-ceiling-") as folder:
        artifact = Path(folder) / "component.cwasm"
        # In a process of its own: an engine that has compiled keeps its threads.
        with spawn.Pool(1) as pool:
            memories, bridged = pool.apply(_compile, (component_file, artifact))
        barrier = spawn.Barrier(len(cpus))
        with spawn.Pool(len(cpus), initializer=_share, initargs=(barrier,)) as pool:
            loops = [pool.apply_async(_loop, (artifact, (memories, bridged), cpu, seconds)) for cpu in cpus]
            results = [loop.get() for loop in loops]
    calls = sum(done for done, _, _ in results)
    return {
        "ceiling_js_rps": round(sum(done / wall for done, wall, _ in results), 1),
        "ceiling_cpu_us": round(sum(cpu for _, _, cpu in results) / calls * 1e6, 1),
    }


def _compile(component_file: Path, artifact: Path) -> tuple[int, bool]:
    """Write the artifact; return what else must be known to load it."""
    compiled = compiled_of(component_file)
    artifact.write_bytes(compiled.artifact)
    return compiled.memories, compiled.bridged


_barrier: Any = None


def _share(barrier: Any) -> None:
    global _barrier  # noqa: PLW0603 - how multiprocessing hands something to the processes of a pool
    _barrier = barrier


def _loop(artifact: Path, facts: tuple[int, bool], cpu: int, seconds: float) -> tuple[int, float, float]:
    """Call for `seconds` on one CPU; return calls, wall seconds and CPU seconds."""
    os.sched_setaffinity(0, {cpu})
    engine = build_engine(DEFAULT_PROFILE, PoolSizes.for_slots(1))
    prepare_process()
    memories, bridged = facts
    loaded = LoadedComponent(engine, component.Component.deserialize_file(engine, str(artifact)), memories=memories, bridged=bridged)
    ticker = Ticker(engine)
    ticker.start()
    _until(loaded, ticker, time.monotonic() + _WARM_SECONDS)
    _barrier.wait(60)
    began, began_cpu = time.monotonic(), time.process_time()
    calls = _until(loaded, ticker, began + seconds)
    return calls, time.monotonic() - began, time.process_time() - began_cpu


def _until(loaded: LoadedComponent, ticker: Ticker, end: float) -> int:
    calls = 0
    port: HostPort = NoHost()
    while time.monotonic() < end:
        journal = Journal(lambda _lines: None, max_lines=LIMITS.log_lines, max_bytes=LIMITS.log_bytes)
        call = Call(context=CONTEXT, limits=LIMITS, capabilities=frozenset(), journal=journal, port=port)
        finished = run_call(loaded, call, GuestRequest(method="GET", url="/", headers=(), body=None), ticker)
        if not isinstance(finished.outcome, Completed):
            message = f"the guest ended as {finished.outcome}"
            raise TypeError(message)
        calls += 1
    return calls


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:4]))))
