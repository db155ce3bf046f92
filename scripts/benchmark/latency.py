"""Milliseconds of a call, by connections: the hello guest, and the notes examples with their host calls and their storage."""

from __future__ import annotations

from typing import Final

from scripts.benchmark.bench import HELLO_TENANTS, NOTES_TENANT, Bench, Figures
from scripts.benchmark.generators import Shape, h2load_is_available, load_execute

_HELLO_CONNECTIONS: Final = (1, 8, 32)
_QUICK_CONNECTIONS: Final = (1, 32)
_NOTES_CONNECTIONS: Final = (1, 8)


def measure(bench: Bench) -> Figures:
    """Return p50 and p99 by connections, and for the notes examples calls a second."""
    if not h2load_is_available():
        bench.miss("latency: h2load is not installed")
        return {}
    seconds, warm_seconds = (1, 0.5) if bench.quick else (5, 1.0)
    figures: Figures = {}
    if bench.hello is None:
        bench.miss("latency of the hello guest: Node.js or componentize-js is not installed")
    else:
        p50, p99 = {}, {}
        for connections in _QUICK_CONNECTIONS if bench.quick else _HELLO_CONNECTIONS:
            shape = Shape(connections=connections, seconds=seconds, warm_seconds=warm_seconds)
            loaded = load_execute(bench, bench.hello, HELLO_TENANTS, shape)
            p50[str(connections)], p99[str(connections)] = loaded.p50_ms, loaded.p99_ms
        figures |= {"latency_js_p50_ms": p50, "latency_js_p99_ms": p99}
    if bench.quick:
        return figures
    for sample in bench.notes:
        for connections in _NOTES_CONNECTIONS:
            loaded = load_execute(bench, sample, (NOTES_TENANT,), Shape(connections=connections, seconds=seconds))
            name = f"execute_{sample.language}_{connections}_callers"
            figures |= {
                f"{name}_p50_ms": loaded.p50_ms,
                f"{name}_p99_ms": loaded.p99_ms,
                f"{name}_calls_per_second": loaded.per_second,
            }
    return figures
