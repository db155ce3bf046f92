"""What the first call of an extension waits for: the signature, and the artifact after a restart of the daemon."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import grpc

from extrunner.runner.v1 import runner_service_pb2, runner_service_pb2_grpc
from registry.cli.authoring import DEFAULT_IDENTITY
from registry.domain.records import AllowedSigner
from registry.provenance.dev_trust import DOMAIN, ISSUER, DevTrust
from registry.provenance.domains import load_trust_domains
from registry.provenance.verifier import BundleVerifier
from scripts.benchmark.bench import Bench, Figures
from scripts.demonstration.samples import Sample


def measure(bench: Bench) -> Figures:
    """Return milliseconds of verifying, and of `Warm` in a daemon just started and again."""
    rounds = 3 if bench.quick else 10
    figures: Figures = {}
    for sample in bench.notes:
        _warm(bench, sample)
        figures[f"verify_signature_{sample.language}_ms"] = _verification(bench, sample, rounds)
        first, again = _after_restart(bench, sample, rounds=max(2, rounds // 3))
        figures[f"warm_after_restart_{sample.language}_ms"] = first
        figures[f"warm_again_{sample.language}_ms"] = again
    return figures


def _verification(bench: Bench, sample: Sample, rounds: int) -> float:
    """Milliseconds for one verification of a signature, cached answers avoided by a verifier of its own each time."""
    state = bench.machine.state
    domains = load_trust_domains(state.trust_domains, environment="development")
    signature = DevTrust.open(state.trust).sign(sample.archive, DEFAULT_IDENTITY)
    signers = (AllowedSigner(trust_domain=DOMAIN, issuer=ISSUER, identity=DEFAULT_IDENTITY),)
    verifiers = [BundleVerifier(domains) for _ in range(rounds)]
    times = [
        _milliseconds(lambda v=verifier: v.verify(content_hash=sample.content_hash, bundle_json=signature, signers=signers))  # type: ignore[misc]
        for verifier in verifiers
    ]
    return round(statistics.median(times), 3)


def _after_restart(bench: Bench, sample: Sample, *, rounds: int) -> tuple[float, float]:
    """Milliseconds of `Warm` in a daemon just started over a warm artifact cache (verify + load), and of the next one."""
    first: list[float] = []
    second: list[float] = []
    for _ in range(rounds):
        bench.machine.stop_runnerd()
        bench.machine.start_runnerd()
        for times in (first, second):
            times.append(_warm(bench, sample))
    return round(statistics.median(first), 2), round(statistics.median(second), 2)


def _warm(bench: Bench, sample: Sample) -> float:
    request = runner_service_pb2.WarmRequest(content_hash=sample.content_hash)
    metadata = (("authorization", f"Bearer {bench.token('*', scope='warm')}"),)
    with grpc.insecure_channel(bench.machine.addresses.grpc) as channel:
        stub: Any = runner_service_pb2_grpc.RunnerServiceStub(channel)
        grpc.channel_ready_future(channel).result(timeout=10)
        return _milliseconds(lambda: stub.Warm(request, timeout=120, metadata=metadata))


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000
