"""Memory: of an extension that is loaded and idle, and of a call in flight beyond what its worker keeps anyway.

An idle extension is its native code in a sealed memory file, which workers map; a call in flight is what workers have resident and private.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from typing import Any, Final

import grpc

from extrunner.runner.v1 import execution_pb2, runner_service_pb2, runner_service_pb2_grpc
from scripts.benchmark.bench import GUESTS, HELLO_TENANTS, Bench, Figures
from scripts.benchmark.processes import private_kib, shared_memory_kib, worker_pids
from scripts.demonstration.samples import Sample

_EXTRA_VERSIONS: Final = 2
_CALLS_OF_TENANT: Final = 2
_SETTLE_SECONDS: Final = 0.25


def measure(bench: Bench) -> Figures:
    """Return KiB of an idle extension and of a call in flight."""
    sample = bench.hello
    if sample is None:
        bench.miss("memory: Node.js or componentize-js is not installed")
        return {}
    in_flight = asyncio.run(_in_flight(bench, sample))
    figures: Figures = {"memory_workers": len(worker_pids(bench.machine.runnerd_pid))}
    if in_flight is None:
        bench.miss("memory of a call in flight: none was still running when it was looked for")
    else:
        figures["memory_call_in_flight_kib"] = round(in_flight)
    if bench.quick:
        bench.say("memory of an idle extension is measured without --quick: it compiles several")
        return figures
    return figures | _idle(bench)


async def _in_flight(bench: Bench, sample: Sample) -> float | None:
    """KiB that a call adds while it runs: several at once that are busy for a while, compared with the same workers when idle."""
    metadata = (("authorization", f"Bearer {bench.token(*HELLO_TENANTS)}"),)
    async with grpc.aio.insecure_channel(bench.machine.addresses.grpc) as channel:
        stub: Any = runner_service_pb2_grpc.RunnerServiceStub(channel)

        async def call(tenant: str, path: str) -> None:
            context = execution_pb2.Context(request_id="memory", tenant_id=tenant, extension_id=sample.name)
            request = execution_pb2.ExecuteRequest(context=context, http=execution_pb2.HttpRequest(method="GET", path=path))
            response = await stub.Execute(request, timeout=30, metadata=metadata)
            if response.WhichOneof("outcome") != "completed":
                message = f"a call of {path} ended as {response.WhichOneof('outcome')}"
                raise RuntimeError(message)

        async def at_once(path: str) -> list[asyncio.Task[None]]:
            return [asyncio.create_task(call(tenant, path)) for tenant in HELLO_TENANTS for _ in range(_CALLS_OF_TENANT)]

        found: list[float] = []
        for _ in range(1 if bench.quick else 3):
            await asyncio.gather(*await at_once("/busy"))
            await asyncio.sleep(_SETTLE_SECONDS)
            idle = _private(bench)
            running = await at_once("/busy")
            await asyncio.sleep(_SETTLE_SECONDS)
            busy = _private(bench)
            still = sum(not task.done() for task in running)
            await asyncio.gather(*running)
            if still:
                found.append((busy - idle) / still)
    return statistics.median(found) if found else None


def _idle(bench: Bench) -> Figures:
    """Publish more versions of the guest, which loads them; nobody calls them."""
    metadata = (("authorization", f"Bearer {bench.token('*', scope='warm')}"),)
    daemon = bench.machine.runnerd_pid
    manifest = json.loads((GUESTS / "hello" / "manifest.json").read_bytes())
    numbers = range(1, _EXTRA_VERSIONS + 1)
    manifests = [json.dumps(manifest | {"version": f"1.{number}.0"}).encode() for number in numbers]
    shared, private = shared_memory_kib(), private_kib(daemon)
    versions = [bench.publish(GUESTS / "hello", manifest=changed) for changed in manifests]
    with grpc.insecure_channel(bench.machine.addresses.grpc) as channel:
        stub: Any = runner_service_pb2_grpc.RunnerServiceStub(channel)
        for version in versions:
            stub.Warm(runner_service_pb2.WarmRequest(content_hash=version.content_hash), timeout=120, metadata=metadata)
    return {
        "memory_idle_extension_shared_kib": round((shared_memory_kib() - shared) / len(versions)),
        "memory_idle_extension_private_kib": round((private_kib(daemon) - private) / len(versions)),
    }


def _private(bench: Bench) -> int:
    return sum(map(private_kib, worker_pids(bench.machine.runnerd_pid)))
