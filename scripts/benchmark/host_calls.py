"""Microseconds of a host call, by function: how much longer a guest runs that makes many of them than one that makes none.

`context.get-context` is answered in the worker, `config.get` by the daemon, `storage` by PostgreSQL, with values of 32 KiB.
"""

from __future__ import annotations

import statistics
from typing import Any, Final

import grpc

from extrunner.runner.v1 import execution_pb2, runner_service_pb2_grpc
from scripts.benchmark.bench import PROBE_TENANT, Bench, Figures
from scripts.demonstration.samples import javascript_is_available

_FUNCTIONS: Final = ("context.get-context", "config.get", "storage.put", "storage.get")
_CALLS: Final = 20


def measure(bench: Bench) -> Figures:
    """Return p50 and p99 for each function, over executions of many calls each."""
    if not javascript_is_available():
        bench.miss("host calls: Node.js or componentize-js is not installed")
        return {}
    sample = bench.probe
    metadata = (("authorization", f"Bearer {bench.token(PROBE_TENANT)}"),)
    rounds = 5 if bench.quick else 30
    with grpc.insecure_channel(bench.machine.addresses.grpc) as channel:
        stub: Any = runner_service_pb2_grpc.RunnerServiceStub(channel)

        def wall_us(name: str, times: int) -> float:
            context = execution_pb2.Context(request_id="host-calls", tenant_id=PROBE_TENANT, extension_id=sample.name)
            http = execution_pb2.HttpRequest(method="GET", path=f"/call/{name}/{times}")
            response = stub.Execute(execution_pb2.ExecuteRequest(context=context, http=http), timeout=30, metadata=metadata)
            if response.WhichOneof("outcome") != "completed":
                message = f"{times} calls of {name} ended as {response.WhichOneof('outcome')}"
                raise RuntimeError(message)
            return float(response.usage.wall_time.ToMicroseconds())

        figures: Figures = {}
        for name in _FUNCTIONS:
            wall_us(name, _CALLS)
            without = statistics.median(wall_us(name, 0) for _ in range(rounds))
            each = sorted((wall_us(name, _CALLS) - without) / _CALLS for _ in range(rounds))
            figures[name] = {"p50": round(each[len(each) // 2], 1), "p99": round(each[len(each) * 99 // 100], 1)}
    return {"host_call_us": figures}
