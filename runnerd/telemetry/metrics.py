"""The daemon's metrics, for Prometheus (DESIGN §10, T43).

Every label comes from a closed set that is written down here; tenant, extension, digest and whatever a guest says are never labels. A value
outside its set is counted as "other", so that no caller can make series.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from registry.domain.capabilities import KNOWN
from registry.domain.errors import Reason

OUTCOMES = ("completed", "trapped", "limit_exceeded", "guest_error", "error")
TRIGGERS = ("http", "event", "schedule")
HOST_CALL_RESULTS = ("ok", "error", "denied", "timeout", "violation")
RESTART_CAUSES = (
    "exited",
    "violation",
    "backstop",
    "memory",
    "memory_pressure",
    "zygote_died",
    "start_failed",
    "idle",
    "recycled",
    "generation",
    "isolation",
    "shutdown",
)
EGRESS_RESULTS = (
    "ok",
    "counted",
    "invalid",
    "not_on_list",
    "ceiling",
    "limit",
    "secret",
    "address",
    "dns",
    "connect",
    "tls",
    "timeout",
    "response_size",
    "protocol",
    "unavailable",
    "internal",
)
"""Of http.fetch: answered; answered although the host is on no list (count mode); the rest is why not."""
GENERATION_RESULTS = ("started", "refused")
CIRCUIT_STATES = ("open", "half_open", "closed")
VERIFICATION_RESULTS = ("ok", *sorted(reason.value for reason in Reason))
ARTIFACT_SOURCES = ("memory", "cache", "shared", "compiler", "check")
SHARED_RESULTS = (
    "found",
    "absent",
    "rejected",
    "unavailable",
    "waited_in_vain",
    "stored",
    "present",
    "occupied",
    "not_stored",
    "dropped",
)
"""Of looking for an artifact of another daemon (the first five), and of leaving one for the others."""
PRESCAN_PROBLEMS = (
    "truncated",
    "unknown_field",
    "duplicate_field",
    "too_many_repeats",
    "too_many_fields",
    "too_deep",
    "too_large",
    "bad_varint",
    "undecodable",
)
MEASUREMENT_LOSSES = ("refused", "uncertain", "shutdown")
_OTHER = "other"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COMPILE_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 180)
_FUEL = tuple(10.0**power for power in range(3, 12))
_BYTES = tuple(float(1 << power) for power in range(16, 31, 2))


class UsedResources(Protocol):
    """What one execution used (`runnerd.dispatch.outcome.Usage`)."""

    @property
    def wall_us(self) -> int:
        """Microseconds in a worker."""

    @property
    def queue_us(self) -> int:
        """Microseconds of waiting."""

    @property
    def cpu_us(self) -> int:
        """Microseconds of CPU time."""

    @property
    def fuel(self) -> int:
        """Units of fuel."""

    @property
    def peak_memory_bytes(self) -> int | None:
        """Bytes at the peak, where known."""

    @property
    def egress_request_bytes(self) -> int:
        """Bytes sent by http.fetch."""

    @property
    def egress_response_bytes(self) -> int:
        """Bytes received by http.fetch."""


class Metrics:
    """One daemon's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._executions = self._counter("executions", "Executions that reached an outcome or an error.", "outcome", "trigger")
        self._paths = self._counter("calls_by_path", "Calls that a worker ended, by the way their bodies took.", "path")
        self._duration = self._histogram("execution_duration_seconds", "Time in a worker.", _SECONDS, "outcome")
        self._queue_wait = self._histogram("queue_wait_seconds", "Time waiting for a place and a worker.", _SECONDS)
        self._fuel = self._histogram("execution_fuel", "Fuel used by one execution.", _FUEL)
        self._fuel_total = self._counter("fuel_used", "Fuel used by all executions.")
        self._peak = self._histogram("execution_peak_memory_bytes", "Peak linear memory of one execution.", _BYTES)
        self._cpu = self._counter("guest_cpu_seconds", "CPU time of guests.")
        self._egress = self._counter("egress_bytes", "Bytes of http.fetch.", "direction")
        self._egress_requests = self._counter("egress_requests", "Requests of http.fetch, by result.", "result")
        self._egress_restarts = self._counter("egress_restarts", "Egress processes that died and were replaced.")
        self._host_calls = self._counter("host_calls", "Host calls brokered.", "capability", "result")
        self._denials = self._counter("capability_denials", "Calls of capabilities that were not granted.", "capability")
        self._refusals = self._counter("refusals", "Requests refused or failed, by reason of the catalog.", "reason")
        self._prescan = self._counter("prescan_refusals", "Requests refused before they were parsed.", "problem")
        self._undeclared = self._counter("undeclared_endpoint_calls", "Calls of paths that the manifest does not declare (advisory).")
        self._restarts = self._counter("worker_restarts", "Workers that ended, by cause.", "cause")
        self._generations = self._counter("worker_generations", "New generations of workers that were asked for, by result.", "result")
        self._circuits = self._counter(
            "circuit_transitions", "Circuits of tenants' versions that changed state, by the new state.", "state"
        )
        self._circuits_open = self._gauge("circuits_open", "Circuits that are not closed: versions paused for a tenant.")
        self._workers = self._gauge("workers", "Worker processes alive.")
        self._memory = self._gauge("workers_memory_bytes", "Memory that the workers have for themselves.")
        self._memory_budget = self._gauge("workers_memory_budget_bytes", "What they may have together before one of them goes.")
        self._slots = self._gauge("pool_slots", "Calls that the workers alive can hold.")
        self._slots_used = self._gauge("pool_slots_in_use", "Calls in workers now.")
        self._waiting = self._gauge("admission_waiting", "Calls that wait for a place.")
        self._running = self._gauge("admission_running", "Calls that have a place and compute, rather than wait for the host.")
        self._compiles = self._histogram(
            "compile_duration_seconds", "Time in the compiler of artifacts that were compiled.", _COMPILE_SECONDS
        )
        self._loads = self._counter("artifact_loads", "Artifacts made ready, by where they came from.", "source")
        self._preparing = self._gauge("preparations", "Bundles that wait for a compiler, are fetched for one, or are in one.", "stage")
        self._oldest_compile = self._gauge(
            "oldest_compilation_start_seconds", "Unix time at which the oldest running compilation began, or 0."
        )
        self._shared = self._counter("shared_artifacts", "Artifacts taken from, and left in, the object store.", "result")
        self._verifications = self._counter("bundle_verifications", "Verifications of bundles at load, by result.", "result")
        self._hardening = self._gauge("hardening_applied", "1 where the step holds in every worker alive.", "step")
        self._engine = self._gauge("engine_info", "Always 1; version and fingerprint of the engine.", "version", "fingerprint")
        self._trust = self._gauge("trust_domain_production", "1 where the trust domain is a production one.")
        self._dropped = self._counter("execution_records_lost", "Execution records that could not be handed on.")
        self._measurements_lost = self._counter(
            "guest_measurements_lost", "Series of extensions' own metrics that lost values on their way to the registry.", "why"
        )
        self._prepare()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"extrunner_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"extrunner_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(f"extrunner_{name}", text, labels, buckets=tuple(buckets), registry=self.registry)

    def _prepare(self) -> None:
        """Make every series of the closed sets at once: absence of a series then never means zero.

        Those that every execution touches are kept at hand: looking a series up by its labels costs more than counting.
        """
        self._executions_of = {
            (outcome, trigger): self._executions.labels(outcome, trigger) for outcome in OUTCOMES for trigger in TRIGGERS
        }
        self._path_of = {True: self._paths.labels("bridge"), False: self._paths.labels("ordinary")}
        self._duration_of = {outcome: self._duration.labels(outcome) for outcome in OUTCOMES}
        self._loads_of = {source: self._loads.labels(source) for source in ARTIFACT_SOURCES}
        self._egress_request, self._egress_response = self._egress.labels("request"), self._egress.labels("response")
        closed: tuple[tuple[Counter, Iterable[str]], ...] = (
            (self._refusals, Reason),
            (self._prescan, PRESCAN_PROBLEMS),
            (self._shared, SHARED_RESULTS),
            (self._egress_requests, EGRESS_RESULTS),
            (self._restarts, RESTART_CAUSES),
            (self._generations, GENERATION_RESULTS),
            (self._circuits, CIRCUIT_STATES),
            (self._verifications, VERIFICATION_RESULTS),
            (self._denials, KNOWN),
            (self._measurements_lost, MEASUREMENT_LOSSES),
        )
        for counter, values in closed:
            for value in values:
                counter.labels(value)
        for capability in KNOWN:
            for result in HOST_CALL_RESULTS:
                self._host_calls.labels(capability, result)
        # A call of a function that does not exist.
        self._host_calls.labels(_OTHER, "violation")
        self.preparing(waiting=0, fetching=0, compiling=0, oldest_start=0.0)

    def execution(self, outcome: str, trigger: str) -> None:
        """Count one execution."""
        known = self._executions_of.get((outcome, trigger))
        (known or self._executions.labels(_known(outcome, OUTCOMES), _known(trigger, TRIGGERS))).inc()

    def call_path(self, *, bridged: bool) -> None:
        """Count one call by the way its bodies took: over the bridge, or value by value."""
        self._path_of[bridged].inc()

    def usage(self, outcome: str, used: UsedResources) -> None:
        """Observe what one execution used."""
        (self._duration_of.get(outcome) or self._duration.labels(_OTHER)).observe(used.wall_us / 1e6)
        self._queue_wait.observe(used.queue_us / 1e6)
        self._cpu.inc(used.cpu_us / 1e6)
        self._fuel.observe(used.fuel)
        self._fuel_total.inc(used.fuel)
        if used.peak_memory_bytes is not None:
            self._peak.observe(used.peak_memory_bytes)
        # Most executions send nothing out; the series exist all the same.
        if used.egress_request_bytes:
            self._egress_request.inc(used.egress_request_bytes)
        if used.egress_response_bytes:
            self._egress_response.inc(used.egress_response_bytes)

    def host_call(self, capability: str, result: str) -> None:
        """Count one brokered host call."""
        self._host_calls.labels(_known(capability, KNOWN), _known(result, HOST_CALL_RESULTS)).inc()

    def egress_request(self, result: str) -> None:
        """Count one request of http.fetch."""
        self._egress_requests.labels(_known(result, EGRESS_RESULTS)).inc()

    def egress_restarted(self) -> None:
        """Count one egress process that died."""
        self._egress_restarts.inc()

    def denial(self, capability: str) -> None:
        """Count one call of a capability that was not granted."""
        self._denials.labels(_known(capability, KNOWN)).inc()

    def refusal(self, reason: Reason) -> None:
        """Count one refusal of a request."""
        self._refusals.labels(reason.value).inc()

    def prescan_refusal(self, problem: str) -> None:
        """Count one request refused before it was parsed."""
        self._prescan.labels(_known(problem, PRESCAN_PROBLEMS)).inc()

    def undeclared_endpoint(self) -> None:
        """Count one call of an undeclared path."""
        self._undeclared.inc()

    def worker_ended(self, cause: str) -> None:
        """Count one worker that ended."""
        self._restarts.labels(_known(cause, RESTART_CAUSES)).inc()

    def generation(self, result: str) -> None:
        """Count one new generation of workers: "started", or "refused" where the old one went on."""
        self._generations.labels(_known(result, GENERATION_RESULTS)).inc()

    def circuit(self, state: str, *, open_now: int) -> None:
        """Count one transition of a circuit breaker, and say how many circuits are open."""
        self._circuits.labels(_known(state, CIRCUIT_STATES)).inc()
        self._circuits_open.set(open_now)

    def memory(self, held: int, budget: int) -> None:
        """Set the gauges of the workers' memory."""
        self._memory.set(held)
        self._memory_budget.set(budget)

    def pool(self, *, workers: int, slots: int, in_use: int) -> None:
        """Set the pool's gauges."""
        self._workers.set(workers)
        self._slots.set(slots)
        self._slots_used.set(in_use)

    def admission(self, *, waiting: int, running: int) -> None:
        """Set the admission's gauges."""
        self._waiting.set(waiting)
        self._running.set(running)

    def compiled(self, seconds: float) -> None:
        """Observe one artifact that was compiled."""
        self._compiles.observe(seconds)

    def artifact_loaded(self, source: str) -> None:
        """Count one artifact made ready, by where it came from; "check" is from the cache ahead of any call."""
        (self._loads_of.get(source) or self._loads.labels(_OTHER)).inc()

    def shared_artifact(self, result: str) -> None:
        """Count one artifact asked of, or given to, the object store."""
        self._shared.labels(_known(result, SHARED_RESULTS)).inc()

    def preparing(self, *, waiting: int, fetching: int, compiling: int, oldest_start: float) -> None:
        """Set the gauges of what waits for a compiler, is fetched for one, and is in one; the oldest's start as Unix time, or 0."""
        self._preparing.labels("waiting").set(waiting)
        self._preparing.labels("fetching").set(fetching)
        self._preparing.labels("compiling").set(compiling)
        self._oldest_compile.set(oldest_start)

    def verification(self, result: str) -> None:
        """Count one verification of a bundle: "ok" or a reason of the catalog."""
        self._verifications.labels(_known(result, VERIFICATION_RESULTS)).inc()

    def hardening(self, steps: Mapping[str, bool]) -> None:
        """Set the gauge of each hardening step. The names come from our own workers' code; at most 32 are kept."""
        for name, applied in list(steps.items())[:32]:
            self._hardening.labels(name).set(1 if applied else 0)

    def engine(self, version: str, fingerprint: str) -> None:
        """Say which engine runs."""
        self._engine.labels(version, fingerprint[:32]).set(1)

    def trust_domain(self, *, production: bool) -> None:
        """Say whether the trust domain is a production one."""
        self._trust.set(1 if production else 0)

    def record_lost(self) -> None:
        """Count one execution record that could not be handed on."""
        self._dropped.inc()

    def measurements_lost(self, why: str, series: int) -> None:
        """Count series of extensions' own metrics that lost values."""
        self._measurements_lost.labels(_known(why, MEASUREMENT_LOSSES)).inc(series)

    def render(self) -> bytes:
        """Return all series in Prometheus' text form."""
        return generate_latest(self.registry)


def _known(value: str, known: Iterable[str]) -> str:
    return value if value in known else _OTHER
