"""What a start and a first call wait for: readiness, the signature, the artifact, the compiler; and what traffic notices of a compiler.

The cache holds fifty artifacts as large as a JavaScript extension's. They are links to one that the daemon compiled, each with a record
that is signed as the daemon signs: what is measured is reading, hashing and mapping them, not making them fifty times. A few of them belong
to published extensions; the background check refuses the others, as it refuses what was withdrawn.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import grpc

from extrunner.runner.v1 import execution_pb2, runner_service_pb2, runner_service_pb2_grpc
from registry.cli.authoring import DEFAULT_IDENTITY
from registry.domain.digests import ContentHash, content_hash, hex_of
from registry.domain.records import AllowedSigner
from registry.provenance.dev_trust import DOMAIN, ISSUER, DevTrust
from registry.provenance.domains import load_trust_domains
from registry.provenance.verifier import BundleVerifier
from runnerd.artifacts.keys import ArtifactSigner
from runnerd.artifacts.records import ArtifactStatement, write_artifact_record
from runnerd.engine.profile import engine_fingerprint
from scripts.benchmark.bench import GUESTS, HELLO_TENANTS, Bench, Figures
from scripts.benchmark.generators import Shape, h2load_is_available, load_execute
from scripts.demonstration.samples import Sample, build_sample
from scripts.demonstration.steps import Demonstration

_CACHED: Final = 50
_CHECK_SECONDS: Final = 60.0
_CHECKED: Final = "artifacts checked ahead"
_COMPILER_CONNECTIONS: Final = (2, 8)
_LOAD_SECONDS: Final = 6
_YEAR_SECONDS: Final = 365 * 24 * 3600


def measure(bench: Bench) -> Figures:
    """Return the figures of start, first calls, verification and compilation."""
    if bench.quick:
        bench.say("cold paths are measured without --quick: they compile and start the daemon anew")
        return {}
    figures: Figures = {}
    for sample in bench.notes:
        figures[f"verify_signature_{sample.language}_ms"] = _verification(bench, sample, 10)
        _forget(bench, sample)
        figures.setdefault("compile_s", {})[sample.language] = _compile(bench, sample)
    if bench.hello is None:
        bench.miss("cold start: Node.js or componentize-js is not installed")
        return figures
    published = _fill(bench, bench.hello, 6)
    figures |= _starts(bench, published, rounds=7)
    if h2load_is_available():
        figures |= _traffic_while_compiling(bench, bench.hello, published)
    else:
        bench.miss("traffic while compiling: h2load is not installed")
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


def _fill(bench: Bench, hello: Sample, count: int) -> list[Sample]:
    """Fill the cache; return `count` extensions whose artifacts are in it: the first used longest ago, the others last of all."""
    signer = ArtifactSigner.from_file(bench.machine.state.keys / "artifacts.ed25519")
    folder = _cache(bench)
    _warm(bench, hello)
    statement = ArtifactStatement(**json.loads((folder / f"{hex_of(hello.content_hash)}.record").read_bytes())["body"])

    def cache(digest: ContentHash, *, age_seconds: float) -> None:
        with suppress(FileExistsError):
            os.link(folder / f"{hex_of(hello.content_hash)}.cwasm", folder / f"{hex_of(digest)}.cwasm")
        record = folder / f"{hex_of(digest)}.record"
        record.write_bytes(write_artifact_record(replace(statement, content_hash=digest), signer))
        os.utime(record, (time.time() - age_seconds,) * 2)

    for number in range(_CACHED - count):
        cache(content_hash(f"withdrawn {number}".encode()), age_seconds=1_000 + number)
    extensions = []
    for number in range(count):
        manifest = json.loads((hello.folder / "manifest.json").read_bytes()) | {"name": f"com.example.bench-cold-{number}"}
        sample = build_sample(hello.example, bench.work / "cold", projects=GUESTS, manifest=json.dumps(manifest).encode())
        # Before it is published: publishing warms, and would compile it.
        cache(sample.content_hash, age_seconds=0)
        demonstration = Demonstration(machine=bench.machine, report=bench.report, samples=[sample], work=bench.work / "cold")
        demonstration.publish()
        bench.install(sample, HELLO_TENANTS[0])
        extensions.append(sample)
    return extensions


def _starts(bench: Bench, published: Sequence[Sample], *, rounds: int) -> Figures:
    """Return medians over a few starts: until ready, first call of an artifact not yet checked, and of one that was."""
    ready, unchecked, checked, again = [], [], [], []
    first, *others = published
    log = bench.machine.state.logs / "runnerd.log"
    for number in range(rounds):
        record = _cache(bench) / f"{hex_of(first.content_hash)}.record"
        os.utime(record, (time.time() - _YEAR_SECONDS,) * 2)
        bench.machine.stop_runnerd()
        ready.append(_milliseconds(bench.machine.start_runnerd))
        with _calls(bench) as call:
            unchecked.append(_milliseconds(lambda run=call: run(first)))  # type: ignore[misc]
            deadline = time.monotonic() + _CHECK_SECONDS
            while _CHECKED.encode() not in log.read_bytes():
                if time.monotonic() > deadline:
                    message = f"the daemon did not check its cache within {_CHECK_SECONDS:g} seconds"
                    raise TimeoutError(message)
                time.sleep(0.05)
            extension = others[number % len(others)]
            checked.append(_milliseconds(lambda run=call, which=extension: run(which)))  # type: ignore[misc]
            again.append(_milliseconds(lambda run=call, which=extension: run(which)))  # type: ignore[misc]
    return {
        "start_ready_ms_50": round(statistics.median(ready), 1),
        "cold_first_call_ms": round(statistics.median(unchecked), 2),
        "checked_first_call_ms": round(statistics.median(checked), 2),
        "second_call_ms": round(statistics.median(again), 2),
    }


def _traffic_while_compiling(bench: Bench, hello: Sample, published: Sequence[Sample]) -> Figures:
    """Return p99 of calls while a compiler runs, divided by that without one, by connections; and how long the compiler took."""
    ratios: dict[str, float] = {}
    seconds: list[float] = []
    left = list(published)
    for connections in _COMPILER_CONNECTIONS:
        shape = Shape(connections=connections, seconds=_LOAD_SECONDS)
        found: dict[bool, list[float]] = {False: [], True: []}
        # Quiet, busy, quiet: what else the machine does meanwhile should not look like the compiler's doing.
        for compiling in (False, True, False):
            if compiling:
                sample = left.pop()
                _forget(bench, sample)
                _warm(bench, hello)
                with _in_background(lambda one=sample: seconds.append(_compile(bench, one))):  # type: ignore[misc]
                    found[True].append(load_execute(bench, hello, HELLO_TENANTS, shape).p99_ms)
            else:
                found[False].append(load_execute(bench, hello, HELLO_TENANTS, shape).p99_ms)
        ratios[str(connections)] = round(statistics.mean(found[True]) / statistics.mean(found[False]), 2)
        bench.say(f"p99 at {connections} connections: {found[False]} ms without a compiler, {found[True]} ms with one")
    return {"p99_ratio_while_compiling": ratios, "compile_under_load_s": dict(zip(ratios, seconds, strict=True))}


def _forget(bench: Bench, sample: Sample) -> None:
    """Make the daemon compile an extension when it is asked for again."""
    bench.machine.stop_runnerd()
    for path in (bench.machine.state.cache / "artifacts").glob(f"*/{hex_of(sample.content_hash)}.*"):
        path.unlink()
    bench.machine.start_runnerd()


def _compile(bench: Bench, sample: Sample) -> float:
    """Seconds in the compiler."""
    duration = _warm(bench, sample).compile_duration
    return round(duration.seconds + duration.nanos / 1e9, 2)


def _warm(bench: Bench, sample: Sample) -> runner_service_pb2.WarmResponse:
    request = runner_service_pb2.WarmRequest(content_hash=sample.content_hash)
    with _stub(bench) as stub:
        response: runner_service_pb2.WarmResponse = stub.Warm(
            request, timeout=240, metadata=(("authorization", f"Bearer {bench.token('*', scope='warm')}"),)
        )
    return response


@contextmanager
def _calls(bench: Bench) -> Iterator[Callable[[Sample], None]]:
    """Yield what calls an extension over one connection, made before the first call.

    Raises:
        RuntimeError: the call did not complete.
    """
    tenant = HELLO_TENANTS[0]
    metadata = (("authorization", f"Bearer {bench.token(tenant)}"),)
    with _stub(bench) as stub:

        def call(sample: Sample) -> None:
            request = execution_pb2.ExecuteRequest(
                context=execution_pb2.Context(request_id="bench-cold", tenant_id=tenant, extension_id=sample.name),
                http=execution_pb2.HttpRequest(method="GET", path="/"),
            )
            response = stub.Execute(request, timeout=30, metadata=metadata)
            if response.WhichOneof("outcome") != "completed":
                message = f"the call did not complete: {response}"
                raise RuntimeError(message)

        yield call


@contextmanager
def _stub(bench: Bench) -> Iterator[Any]:
    with grpc.insecure_channel(bench.machine.addresses.grpc) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        yield runner_service_pb2_grpc.RunnerServiceStub(channel)


@contextmanager
def _in_background(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _cache(bench: Bench) -> Path:
    return bench.machine.state.cache / "artifacts" / engine_fingerprint()


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000
