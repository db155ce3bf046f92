"""A bounded load of `Execute` calls over one gRPC channel, from a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import grpc

from extrunner.runner.v1 import execution_pb2, runner_service_pb2_grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to call, how often, by how many callers at once."""

    target: str
    token: str
    tenant: str
    extension: str
    method: str
    path: str
    calls: int
    callers: int


def run(load: Load) -> dict[str, float]:
    """Run the load and return milliseconds and calls a second. Calls that did not complete with a 2xx are counted in `unexpected`."""
    return asyncio.run(_run(load))


async def _run(load: Load) -> dict[str, float]:
    request = execution_pb2.ExecuteRequest(
        context=execution_pb2.Context(request_id="bench", tenant_id=load.tenant, extension_id=load.extension),
        http=execution_pb2.HttpRequest(method=load.method, path=load.path),
    )
    metadata = (("authorization", f"Bearer {load.token}"),)
    times: list[float] = []
    unexpected = 0
    async with grpc.aio.insecure_channel(load.target) as channel:
        stub: Any = runner_service_pb2_grpc.RunnerServiceStub(channel)
        work = iter(repeat(None, load.calls))

        async def caller() -> None:
            nonlocal unexpected
            for _ in work:
                began = time.perf_counter()
                response = await stub.Execute(request, timeout=30, metadata=metadata)
                times.append((time.perf_counter() - began) * 1000)
                # A status of 2xx; anything else would measure the way to a refusal.
                if response.WhichOneof("outcome") != "completed" or not 200 <= response.completed.status < 300:  # noqa: PLR2004
                    unexpected += 1

        for _ in range(20):
            await stub.Execute(request, timeout=30, metadata=metadata)
        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(load.callers)))
        elapsed = time.perf_counter() - began
    times.sort()
    return {
        "p50_ms": round(times[len(times) // 2], 3),
        "p99_ms": round(times[min(len(times) - 1, len(times) * 99 // 100)], 3),
        "calls_per_second": round(load.calls / elapsed, 1),
        "unexpected": unexpected,
    }


if __name__ == "__main__":
    # The load travels on standard input: a token must not stand in the list of processes.
    print(json.dumps(run(Load(**json.loads(sys.stdin.read())))))
