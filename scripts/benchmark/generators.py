"""Load from `h2load`, a generator in C, as gRPC and as plain HTTP: a generator in Python would be what is measured.

gRPC says how a call ended in trailers, which `h2load` does not read, so the daemon's own counters say whether answers were completed ones.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx

from extrunner.runner.v1 import execution_pb2
from scripts.benchmark.bench import Bench
from scripts.demonstration.samples import Sample

_SERVICE: Final = "/extrunner.runner.v1.RunnerService"
_FINISHED: Final = re.compile(r"^finished in .*?, ([0-9.]+) req/s", re.MULTILINE)
_STATUS: Final = re.compile(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", re.MULTILINE)
_REQUESTS: Final = re.compile(r"^requests: .* (\d+) failed, (\d+) errored, (\d+) timeout", re.MULTILINE)
_EXECUTIONS: Final = re.compile(r'^extrunner_executions_total\{outcome="([a-z_]+)",.*\} ([0-9.e+]+)$', re.MULTILINE)
_REFUSALS: Final = re.compile(r"^extrunner_refusals_total\{.*\} ([0-9.e+]+)$", re.MULTILINE)


class UnexpectedAnswersError(Exception):
    """What was measured was not what should be: answers other than completed ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much load, for how long.

    Args:
        connections: at once, each with one request on the way; shared out over the generators.
        seconds: measured.
        warm_seconds: before that.
    """

    connections: int
    seconds: float
    warm_seconds: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the generators saw together."""

    per_second: float
    p50_ms: float
    p99_ms: float
    calls: int
    """All of them, those of the warm-up included."""


def h2load_is_available() -> bool:
    """Tell whether `h2load` is installed (Debian: nghttp2-client)."""
    return shutil.which("h2load") is not None


def load_execute(bench: Bench, sample: Sample, tenants: Sequence[str], shape: Shape, *, path: str = "/") -> Loaded:
    """Call `Execute` for several tenants at once, a generator for each.

    Raises:
        UnexpectedAnswersError: calls were refused or did not end as completed.
    """
    generators: list[list[str]] = []
    for index, tenant in enumerate(tenants):
        connections = shape.connections // len(tenants) + (index < shape.connections % len(tenants))
        if not connections:
            continue
        message = execution_pb2.ExecuteRequest(
            context=execution_pb2.Context(request_id=f"bench-{index}", tenant_id=tenant, extension_id=sample.name),
            http=execution_pb2.HttpRequest(method="GET", path=path),
        ).SerializeToString()
        arguments = grpc_arguments(bench, "Execute", message, bench.token(tenant), bench.work / f"execute-{tenant}-{sample.name}.bin")
        generators.append(["-c", str(connections), *arguments])
    before = _counted(bench)
    loaded = _run(generators, shape, bench.work)
    # By the daemon's count: the generators log nothing of their warm-up, which costs time all the same.
    return replace(loaded, calls=_completed_since(bench, before))


def grpc_arguments(bench: Bench, method: str, message: bytes, token: str, body: Path) -> list[str]:
    """Return the arguments of a generator that sends `message`, which is written to `body` first."""
    body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    # NOTE: h2load takes headers from its command line only. The token is of a machine that is gone in a minute, for tenants that exist
    # nowhere else.
    headers = ("content-type: application/grpc", "te: trailers", f"authorization: Bearer {token}")
    arguments = [argument for header in headers for argument in ("-H", header)]
    return ["-d", str(body), *arguments, f"http://{bench.machine.addresses.grpc}{_SERVICE}/{method}"]


def load_http(url: str, shape: Shape, work: Path) -> Loaded:
    """Send GET requests over HTTP/1.1.

    Raises:
        UnexpectedAnswersError: an answer was no 2xx.
    """
    return _run([["--h1", "-c", str(shape.connections), url]], shape, work)


def _run(generators: Sequence[Sequence[str]], shape: Shape, work: Path) -> Loaded:
    timing = ["-t", "1", "-m", "1", "-D", str(shape.seconds), f"--warm-up-time={round(shape.warm_seconds * 1000)}ms"]
    logs = [work / f"h2load-{index}.tsv" for index in range(len(generators))]
    running = [
        subprocess.Popen(
            ["h2load", *timing, f"--log-file={log}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for log, arguments in zip(logs, generators, strict=True)
    ]
    try:
        per_second = sum(_read(process.communicate(timeout=shape.seconds + shape.warm_seconds + 30)[0]) for process in running)
    finally:
        for process in running:
            process.kill()
            process.wait()
    times = sorted(time for log in logs for time in milliseconds_in(log))
    return Loaded(per_second=round(per_second, 1), p50_ms=quantile(times, 50), p99_ms=quantile(times, 99), calls=len(times))


def _read(said: str) -> float:
    finished, status, requests = _FINISHED.search(said), _STATUS.search(said), _REQUESTS.search(said)
    if finished is None or status is None or requests is None:
        message = f"h2load said: {said[-500:]}"
        raise UnexpectedAnswersError(message)
    good, *others = map(int, status.groups())
    if not good or any(others) or any(map(int, requests.groups())):
        message = f"h2load saw {status.group(0)}; {requests.group(0)}"
        raise UnexpectedAnswersError(message)
    return float(finished.group(1))


def milliseconds_in(log: Path) -> Iterator[float]:
    """Yield the milliseconds of each request but those of the warm-up."""
    with log.open() as lines:
        for line in lines:
            yield int(line.split("\t")[2]) / 1000
    log.unlink()


def quantile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile of ordered numbers; 0 where there are none."""
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 3) if ordered else 0.0


def _completed_since(bench: Bench, before: Counter[str]) -> int:
    """Return how many executions completed since; check by the daemon's counters that all did, and that nothing was refused."""
    # Calls that the generators left behind when their time was up still end, as cancelled ones; nobody counted those as answers.
    delta = _counted(bench)
    delta.subtract(before)
    completed = delta.pop("completed")
    cancelled = delta.pop("error")
    others = {name: count for name, count in delta.items() if count}
    if not completed or others or cancelled > _MOST_CANCELLED:
        message = f"{completed} executions completed, but others did not: {others}, {cancelled} failed"
        raise UnexpectedAnswersError(message)
    return completed


def _counted(bench: Bench) -> Counter[str]:
    text = httpx.get(f"{bench.machine.addresses.operations}/metrics", timeout=5, trust_env=False).text
    counts: Counter[str] = Counter({"completed": 0, "error": 0})
    for outcome, value in _EXECUTIONS.findall(text):
        counts[outcome] += int(float(value))
    counts["refused"] = sum(int(float(value)) for value in _REFUSALS.findall(text))
    return counts


_MOST_CANCELLED: Final = 64
"""One for each connection at most."""
