"""Milliseconds of a call whose body goes through a JavaScript guest and back, by size, over gRPC; and what the bridge gains in a worker.

The gain is measured without a daemon, on one component compiled both ways, in one process, turn by turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, Final

import grpc

from extrunner.runner.v1 import execution_pb2, runner_service_pb2_grpc
from registry.cli.building import COMPONENT
from registry.domain.limits import MIB
from scripts.benchmark.bench import PROBE_TENANT, Bench, Figures
from scripts.demonstration.samples import ROOT, javascript_is_available

KIB: Final = 1024
SIZES: Final = {"1KiB": KIB, "100KiB": 100 * KIB, "1MiB": MIB, "10MiB": 10 * MIB}
_ROUNDS: Final = {"1KiB": 50, "100KiB": 30, "1MiB": 10, "10MiB": 5}
_MESSAGE_BYTES: Final = 64 * MIB


def measure(bench: Bench) -> Figures:
    """Return the median by size, for text and for bytes that are none, and the ratio to the ordinary call path."""
    if not javascript_is_available():
        bench.miss("echo: Node.js or componentize-js is not installed")
        return {}
    sample = bench.probe
    options = [("grpc.max_send_message_length", _MESSAGE_BYTES), ("grpc.max_receive_message_length", _MESSAGE_BYTES)]
    metadata = (("authorization", f"Bearer {bench.token(PROBE_TENANT)}"),)
    with grpc.insecure_channel(bench.machine.addresses.grpc, options=options) as channel:
        stub: Any = runner_service_pb2_grpc.RunnerServiceStub(channel)

        def call(body: bytes) -> float:
            context = execution_pb2.Context(request_id="echo", tenant_id=PROBE_TENANT, extension_id=sample.name)
            http = execution_pb2.HttpRequest(method="POST", path="/echo", body=body)
            began = time.perf_counter()
            response = stub.Execute(execution_pb2.ExecuteRequest(context=context, http=http), timeout=30, metadata=metadata)
            took = (time.perf_counter() - began) * 1000
            if response.completed.body != body:
                message = f"an echo of {len(body)} bytes came back as {response.WhichOneof('outcome')}"
                raise RuntimeError(message)
            return took

        def median(size: str, body: bytes) -> float:
            rounds = max(3, _ROUNDS[size] // 5) if bench.quick else _ROUNDS[size]
            call(body)
            return round(statistics.median(call(body) for _ in range(rounds)), 2)

        figures: Figures = {
            "echo_ms": {size: median(size, b"a" * length) for size, length in SIZES.items()},
            "echo_bytes_ms": {size: median(size, os.urandom(length)) for size, length in SIZES.items()},
        }
    if bench.quick:
        bench.say("the bridge is compared with the ordinary call path without --quick: it compiles the guest twice")
        return figures
    command = [sys.executable, "-m", "scripts.benchmark.call_paths", str(sample.folder / COMPONENT)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    ratios: Figures = json.loads(answer.stdout)
    return figures | ratios
