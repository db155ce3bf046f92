"""Calls a second: `Execute` over gRPC with all features on, `wasmtime serve` at the same connections, and the machine's ceiling.

The guests do the same: a small JSON answer made from the request, in a fresh instance for every call. Measurements of both alternate, and
the median of the rounds counts, so that a neighbour's noise meets both.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping

from registry.cli.building import COMPONENT
from runnerd.dispatch.admission import AdmissionLimits
from scripts.benchmark.bench import HELLO_TENANTS, Bench, Figures
from scripts.benchmark.generators import Shape, h2load_is_available, load_execute, load_http
from scripts.benchmark.processes import cpu_times
from scripts.benchmark.wasmtime_serve import PeerMissingError, wasmtime_serve
from scripts.demonstration.samples import ROOT, Sample

_COMPARED = (8, 16)
"""Connections at which the ratio counts: at one, `wasmtime serve` is not what several callers get."""
_CONNECTIONS = (1, *_COMPARED)
_CALLS_OF_INSTALL = AdmissionLimits(slots=1024).per_install


def measure(bench: Bench) -> Figures:
    """Return calls a second by connections, their ratios and CPU microseconds of a call."""
    sample = bench.hello
    if sample is None:
        bench.miss("throughput: Node.js or componentize-js is not installed")
        return {}
    figures = _ceiling(sample, seconds=1 if bench.quick else 6)
    if not h2load_is_available():
        bench.miss("throughput: h2load is not installed")
        return figures
    return figures | _compared(bench, sample, figures["ceiling_js_rps"])


def _ceiling(sample: Sample, *, seconds: float) -> Figures:
    command = [sys.executable, "-m", "scripts.benchmark.ceiling", str(sample.folder / COMPONENT), str(seconds)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    figures: Figures = json.loads(answer.stdout)
    return figures


def _tenants(connections: int) -> tuple[str, ...]:
    """Return as many tenants as it takes to hold so many calls: one install may have eight in flight. The peer serves one application."""
    return HELLO_TENANTS[: max(1, -(-connections // _CALLS_OF_INSTALL))]


def _compared(bench: Bench, sample: Sample, ceiling: float) -> Figures:
    seconds, warm_seconds, rounds = (1, 0.5, 1) if bench.quick else (5, 1.0, 3)
    ours: defaultdict[int, list[float]] = defaultdict(list)
    theirs: defaultdict[int, list[float]] = defaultdict(list)
    daemon: list[float] = []
    workers: list[float] = []
    # Each tenant's workers have mapped the component.
    load_execute(bench, sample, _tenants(max(_CONNECTIONS)), Shape(connections=len(HELLO_TENANTS), seconds=1))
    try:
        peer = wasmtime_serve(bench)
    except PeerMissingError as missing:
        bench.miss(f"wasmtime serve: {missing}")
        peer = None
    for _ in range(rounds):
        for connections in _COMPARED if bench.quick else _CONNECTIONS:
            shape = Shape(connections=connections, seconds=seconds, warm_seconds=warm_seconds)
            if peer is not None:
                with peer.running() as url:
                    theirs[connections].append(load_http(url, shape, bench.work).per_second)
            before = cpu_times(bench.machine)
            loaded = load_execute(bench, sample, _tenants(connections), shape)
            used = cpu_times(bench.machine).since(before)
            ours[connections].append(loaded.per_second)
            if connections in _COMPARED:
                daemon.append(used.daemon_us / loaded.calls)
                workers.append(used.workers_us / loaded.calls)
    return _figures(_medians(ours), _medians(theirs), ceiling) | {
        "daemon_cpu_us": round(statistics.median(daemon), 1),
        "worker_cpu_us": round(statistics.median(workers), 1),
        **({} if peer is None else {"wasmtime_serve_version": peer.version}),
    }


def _medians(found: Mapping[int, list[float]]) -> dict[str, float]:
    return {str(connections): round(statistics.median(values), 1) for connections, values in found.items()}


def _figures(ours: dict[str, float], theirs: dict[str, float], ceiling: float) -> Figures:
    """Put side by side. The figures without "by" are those of the compared number of connections at which we do worse."""
    ratios = {connections: round(ours[connections] / theirs[connections], 3) for connections in theirs}
    compared = [str(connections) for connections in _COMPARED]
    worst = min(compared, key=lambda connections: ratios[connections] if ratios else ours[connections])
    figures: Figures = {
        "execute_js_rps": ours[worst],
        "execute_js_rps_by_connections": ours,
        "ratio_to_ceiling": round(ours[worst] / ceiling, 3),
    }
    if theirs:
        figures |= {
            "wasmtime_serve_js_rps": theirs[worst],
            "wasmtime_serve_js_rps_by_connections": theirs,
            "ratio_vs_wasmtime_serve": ratios[worst],
            "ratio_vs_wasmtime_serve_by_connections": ratios,
        }
    return figures
