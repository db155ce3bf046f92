"""Where the time of one undisturbed call goes: the daemon (gRPC, kernel and generator included), the worker's frames, the engine.

Each part is a difference of measurements one after the other, at one connection: the whole call (the generator's median), the time in a
worker (the daemon's metric, a mean), the engine in a loop (`ceiling`).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Final

import httpx

from registry.cli.building import COMPONENT
from scripts.benchmark.bench import HELLO_TENANTS, Bench, Figures
from scripts.benchmark.generators import Shape, h2load_is_available, load_execute
from scripts.demonstration.samples import ROOT

_DURATION: Final = re.compile(r'^extrunner_execution_duration_seconds_(sum|count)\{outcome="completed"\} ([0-9.e+-]+)$', re.MULTILINE)


def measure(bench: Bench) -> Figures:
    """Return microseconds of a call by part."""
    if bench.hello is None or not h2load_is_available():
        bench.miss("overhead: h2load, Node.js or componentize-js is not installed")
        return {}
    seconds = 1 if bench.quick else 5
    tenant = HELLO_TENANTS[:1]
    shape = Shape(connections=1, seconds=seconds)
    load_execute(bench, bench.hello, tenant, Shape(connections=1, seconds=1))
    before = _in_workers(bench)
    whole_us = load_execute(bench, bench.hello, tenant, shape).p50_ms * 1000
    after = _in_workers(bench)
    worker_us = (after["sum"] - before["sum"]) / (after["count"] - before["count"]) * 1e6
    engine_us = _engine_us(bench.hello.folder / COMPONENT, seconds)
    parts = {
        "whole": whole_us,
        "daemon": whole_us - worker_us,
        "worker": worker_us - engine_us,
        "engine": engine_us,
    }
    return {"overhead_us": {name: round(value, 1) for name, value in parts.items()}}


def _in_workers(bench: Bench) -> dict[str, float]:
    text = httpx.get(f"{bench.machine.addresses.operations}/metrics", timeout=5, trust_env=False).text
    return {name: float(value) for name, value in _DURATION.findall(text)}


def _engine_us(component: object, seconds: float) -> float:
    command = [sys.executable, "-m", "scripts.benchmark.ceiling", str(component), str(seconds), "1"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return 1e6 / float(json.loads(answer.stdout)["ceiling_js_rps"])
