"""Entry of the benchmark; `scripts/bench` makes the environment and then runs this."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc

from extrunner.runner.v1 import runner_service_pb2, runner_service_pb2_grpc
from registry.cli.authoring import DEFAULT_IDENTITY
from registry.cli.credentials import mint_service_token
from registry.cli.development import DevelopmentMachine
from registry.cli.state import state_at
from registry.domain.records import AllowedSigner
from registry.provenance.dev_trust import DOMAIN, ISSUER, DevTrust
from registry.provenance.domains import load_trust_domains
from registry.provenance.verifier import BundleVerifier
from scripts.benchmark.load import Load
from scripts.demonstration.report import Report
from scripts.demonstration.samples import Sample
from scripts.demonstration.steps import ACME, Demonstration, build_samples

_CALLERS = (1, 8)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures a development machine of its own.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    calls = 300 if options.quick else 2_000
    with tempfile.TemporaryDirectory(prefix="extrunner-bench-") as folder:
        figures = _measure(Path(folder), calls=calls, rounds=3 if options.quick else 10)
    print()
    for name, value in figures.items():
        print(f"{name:<44} {value}")
    if options.json:
        print(json.dumps(figures))
    return 0


def _measure(folder: Path, *, calls: int, rounds: int) -> dict[str, Any]:
    report = Report()
    samples = build_samples(report, folder / "samples")
    figures: dict[str, Any] = {}
    with DevelopmentMachine(state_at(folder / "state"), say=print) as machine:
        demonstration = Demonstration(machine=machine, report=report, samples=samples, work=folder / "samples")
        demonstration.publish()
        demonstration.install()
        samples = demonstration.samples
        report.step("measure")
        for sample in samples:
            for callers in _CALLERS:
                for key, value in _load(machine, sample, calls=calls, callers=callers).items():
                    figures[f"execute_{sample.language}_{callers}_callers_{key}"] = value
            figures[f"verify_signature_{sample.language}_ms"] = _verification(machine, sample, rounds)
        for sample in samples:
            cold, warm = _cold(machine, sample, rounds=max(2, rounds // 3))
            figures[f"warm_after_restart_{sample.language}_ms"] = cold
            figures[f"warm_again_{sample.language}_ms"] = warm
    return figures


def _load(machine: DevelopmentMachine, sample: Sample, *, calls: int, callers: int) -> dict[str, float]:
    load = Load(
        target=machine.addresses.grpc,
        token=mint_service_token(machine.state, tenants=[ACME], scopes=["execute"], subject="bench"),
        tenant=ACME,
        extension=sample.name,
        method="GET",
        path="/",
        calls=calls,
        callers=callers,
    )
    answer = subprocess.run(
        [sys.executable, "-m", "scripts.benchmark.load"], input=json.dumps(asdict(load)), capture_output=True, text=True, check=True
    )
    figures: dict[str, float] = json.loads(answer.stdout)
    return figures


def _verification(machine: DevelopmentMachine, sample: Sample, rounds: int) -> float:
    """Milliseconds for one verification of a signature, cached answers avoided by a verifier of its own each time."""
    domains = load_trust_domains(machine.state.trust_domains, environment="development")
    signature = DevTrust.open(machine.state.trust).sign(sample.archive, DEFAULT_IDENTITY)
    signers = (AllowedSigner(trust_domain=DOMAIN, issuer=ISSUER, identity=DEFAULT_IDENTITY),)
    verifiers = [BundleVerifier(domains) for _ in range(rounds)]
    times = [
        _milliseconds(lambda v=verifier: v.verify(content_hash=sample.content_hash, bundle_json=signature, signers=signers))  # type: ignore[misc]
        for verifier in verifiers
    ]
    return round(statistics.median(times), 3)


def _cold(machine: DevelopmentMachine, sample: Sample, *, rounds: int) -> tuple[float, float]:
    """Milliseconds of `Warm` in a daemon just started over a warm artifact cache (verify + load), and of the next one."""
    first: list[float] = []
    second: list[float] = []
    token = mint_service_token(machine.state, tenants=["*"], scopes=["warm"], subject="bench")
    request = runner_service_pb2.WarmRequest(content_hash=sample.content_hash)
    for _ in range(rounds):
        machine.stop_runnerd()
        machine.start_runnerd()
        with grpc.insecure_channel(machine.addresses.grpc) as channel:
            stub: Any = runner_service_pb2_grpc.RunnerServiceStub(channel)
            grpc.channel_ready_future(channel).result(timeout=10)
            for times in (first, second):
                times.append(
                    _milliseconds(lambda s=stub: s.Warm(request, timeout=60, metadata=(("authorization", f"Bearer {token}"),)))  # type: ignore[misc]
                )
    return round(statistics.median(first), 2), round(statistics.median(second), 2)


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    sys.exit(main())
