"""What a noisy neighbour does to a victim (T23, N18): p99 beside it ÷ p99 alone.

The victim offers a tenth of the capacity in calls of about 1 ms; the neighbour wants ten times that: in short calls, in calls that
spin for 50 ms, in calls that wait for 5 s, and in calls that take and fill memory. They are of different tenants. The neighbour's calls
may be refused, the victim's may not. Each case has a run alone of its own, right before, because a machine drifts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import wasmtime

from extrunner.runner.v1 import execution_pb2
from registry.cli.building import COMPONENT, MANIFEST, Language, pack
from scripts.benchmark.bench import Bench, Figures
from scripts.benchmark.generators import (
    Shape,
    UnexpectedAnswersError,
    grpc_arguments,
    h2load_is_available,
    load_execute,
    milliseconds_in,
    quantile,
)
from scripts.demonstration.samples import Sample

_TEXT: Final = Path(__file__).parent / "neighbours" / "guest.wat"
_VICTIM: Final = "bench-victim"
_NEIGHBOUR: Final = "bench-neighbour"
_PART: Final = 0.1
"""Of the capacity: what the victim offers."""
_TIMES: Final = 10
"""As much does a neighbour of short calls offer."""
_MOST_WAITING: Final = 64
"""Calls that the neighbour has on the way at once, running, waiting or refused."""
_HEAD_START_SECONDS: Final = 1.0
_TURNS_PER_MILLISECOND: Final = 500_000
"""Of the guest's loop, with fuel counted, on the machine of docs/performance.md; elsewhere a call is as much longer or shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Guest:
    name: str
    does: str
    """Its behaviour, in WebAssembly text."""


_SHORT: Final = _Guest(name="short", does=f"(call $spin (i32.const {_TURNS_PER_MILLISECOND}))")
_NEIGHBOURS: Final = {
    "short_calls": _SHORT,
    "spinning_calls": _Guest(name="spinning", does=f"(call $spin (i32.const {50 * _TURNS_PER_MILLISECOND}))"),
    "waiting_calls": _Guest(name="waiting", does="(call $wait (i64.const 5000000000))"),
    "memory_growers": _Guest(name="growing", does="(call $take (i32.const 1024))"),
}


_QUICK: Final = ("short_calls",)
"""Neighbours of a quick run: the one that is felt most."""


def measure(bench: Bench) -> Figures:
    """Return `victim_p99_ratio`, the worst case, and the figures of each case."""
    if not h2load_is_available():
        bench.miss("fairness: h2load is not installed")
        return {}
    neighbours = {case: guest for case, guest in _NEIGHBOURS.items() if case in _QUICK or not bench.quick}
    samples = {guest.name: _published(bench, guest) for guest in neighbours.values()}
    for tenant in (_VICTIM, _NEIGHBOUR):
        for sample in samples.values():
            bench.install(sample, tenant)
    rounds, seconds = (1, 2) if bench.quick else (3, 6)
    victim = samples[_SHORT.name]
    capacity = load_execute(bench, victim, (_VICTIM, _NEIGHBOUR), Shape(connections=8, seconds=seconds)).per_second
    rate = capacity * _PART
    cases: dict[str, dict[str, float]] = {}
    for case, guest in neighbours.items():
        pace: tuple[str, ...] = ("-c", "16", "-m", str(_MOST_WAITING // 16))
        if guest is _SHORT:
            pace += (f"--rps={rate * _TIMES / 16:.3f}",)
        cases[case] = _case(bench, victim, samples[guest.name], pace, rate=rate, rounds=rounds, seconds=seconds)
        bench.say(f"{case}: p99 {cases[case]['alone_p99_ms']} ms alone, {cases[case]['beside_p99_ms']} ms beside")
    ratios = {case: figures["ratio"] for case, figures in cases.items()}
    return {
        "fairness_capacity_rps": capacity,
        "fairness_victim_rps": round(rate, 1),
        "fairness": cases,
        "victim_p99_ratios": ratios,
        "victim_p99_ratio": max(ratios.values()),
    }


def _case(  # noqa: PLR0913 - one measurement
    bench: Bench, victim: Sample, neighbour: Sample, pace: tuple[str, ...], *, rate: float, rounds: int, seconds: int
) -> dict[str, float]:
    alone: list[float] = []
    beside: list[float] = []
    for _ in range(rounds):
        alone.append(quantile(_victim(bench, victim, rate, seconds), 99))
        with _running(bench, neighbour, pace, seconds=round(seconds + 2 * _HEAD_START_SECONDS) + 1) as still_runs:
            time.sleep(_HEAD_START_SECONDS)
            beside.append(quantile(_victim(bench, victim, rate, seconds), 99))
            if not still_runs():
                message = "the neighbour ended before the victim"
                raise UnexpectedAnswersError(message)
    # The median of the rounds: one hiccup of the machine is not the neighbour's doing, nor a slow run alone its excuse.
    alone_ms, beside_ms = statistics.median(alone), statistics.median(beside)
    return {"alone_p99_ms": alone_ms, "beside_p99_ms": beside_ms, "ratio": round(beside_ms / alone_ms, 2)}


def _victim(bench: Bench, sample: Sample, rate: float, seconds: int) -> list[float]:
    """Offer the victim's calls at an even rate, and return their milliseconds in order."""
    with _generator(bench, sample, _VICTIM, ("-c", "1", "-m", "32", f"--rps={rate:.3f}"), seconds) as (process, log):
        said, _ = process.communicate(timeout=seconds + 60)
        found = sorted(milliseconds_in(log))
    # Slower than offered is what is measured here; far fewer calls than that are a measurement of something else.
    if process.returncode or len(found) < rate * seconds / 2:
        message = f"the victim's generator made {len(found)} calls: {said[-300:]}"
        raise UnexpectedAnswersError(message)
    return found


@contextmanager
def _running(bench: Bench, sample: Sample, pace: tuple[str, ...], *, seconds: int) -> Iterator[Callable[[], bool]]:
    with _generator(bench, sample, _NEIGHBOUR, pace, seconds) as (process, _):
        yield lambda: process.poll() is None


@contextmanager
def _generator(
    bench: Bench, sample: Sample, tenant: str, pace: tuple[str, ...], seconds: int
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    message = execution_pb2.ExecuteRequest(
        context=execution_pb2.Context(request_id=tenant, tenant_id=tenant, extension_id=sample.name),
        http=execution_pb2.HttpRequest(method="GET", path="/"),
    ).SerializeToString()
    log = bench.work / f"{tenant}.tsv"
    arguments = grpc_arguments(bench, "Execute", message, bench.token(tenant), bench.work / f"{tenant}.bin")
    process = subprocess.Popen(
        ["h2load", "-t", "1", "-D", str(seconds), f"--log-file={log}", *pace, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()
        log.unlink(missing_ok=True)


def _published(bench: Bench, guest: _Guest) -> Sample:
    """Assemble, pack and publish a guest."""
    folder = bench.work / "neighbours" / guest.name
    (folder / COMPONENT).parent.mkdir(parents=True)
    manifest = {
        "name": f"com.example.{guest.name}",
        "publisher": "example",
        "version": "1.0.0",
        "runtime": "wasm-js@1",
        "capabilities": [],
        "api": {"endpoints": [{"method": "GET", "path": "/", "handler": "handler"}]},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    text = _TEXT.read_text("utf-8").replace("BEHAVIOUR", guest.does, 1)
    (folder / COMPONENT).write_bytes(bytes(wasmtime.wat2wasm(text)))
    archive = folder.with_suffix(".tar.zst")
    packed = pack(folder, archive)
    return bench.publish_packed(
        Sample(example=guest.name, folder=folder, archive=archive, language=Language.NONE, packed=packed, cached=False)
    )
