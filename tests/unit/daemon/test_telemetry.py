"""Logs that spill nothing, metrics whose series nobody can make."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from registry.domain.capabilities import KNOWN
from registry.domain.errors import Reason
from registry.logs import MAX_VALUE_CHARACTERS, configure_logs, correlate, correlated
from runnerd.artifacts.compiler import CompilerSettings
from runnerd.dispatch.outcome import Usage
from runnerd.rpc.wire import WireProblem
from runnerd.telemetry.metrics import HOST_CALL_RESULTS, PRESCAN_PROBLEMS, VERIFICATION_RESULTS, Metrics


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure_logs("test", level="INFO", stream=stream)
    yield stream
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line__is_json_with_its_correlation(log: io.StringIO) -> None:
    with correlated(request_id="r", tenant_id="t"):
        structlog.get_logger("x").info("something", count=1)
        logging.getLogger("library").warning("other %s", "thing")
    structlog.get_logger("x").debug("not written")
    first, second = lines(log)
    assert (first["event"], first["count"], first["request_id"], first["service"], first["level"]) == ("something", 1, "r", "test", "info")
    assert (second["event"], second["tenant_id"], second["logger"]) == ("other thing", "t", "library")


@pytest.mark.parametrize("name", ["email", "query", "body", "headers", "Authorization", "token", "user_name", "additional_fields"])
def test_private_fields__are_not_written_whoever_logs_them(log: io.StringIO, name: str) -> None:
    structlog.get_logger("x").info("e", **{name: "MARKER"})
    logging.getLogger("x").warning("e", extra={name: "MARKER"})
    assert "MARKER" not in log.getvalue()


def test_foreign_text__leaves_as_escapes_and_cut(log: io.StringIO) -> None:
    structlog.get_logger("x").info("e", text="\x1b[2J\u202e\n" + "a" * 10_000)
    written = log.getvalue()
    assert written.isascii()
    assert "\x1b" not in written
    assert len(lines(log)[0]["text"]) <= MAX_VALUE_CHARACTERS + 1


def test_exception__is_written_as_a_field(log: io.StringIO) -> None:
    try:
        int("reason")
    except ValueError:
        structlog.get_logger("x").exception("failed")
    assert "ValueError: invalid literal" in lines(log)[0]["exception"]


def test_correlation__ends_with_its_block_and_stays_in_its_task(log: io.StringIO) -> None:
    async def task(name: str) -> None:
        correlate(request_id=name)
        await asyncio.sleep(0)
        with correlated(tenant_id=f"t-{name}"):
            await asyncio.sleep(0)
            structlog.get_logger("x").info("inside", mine=name)
        structlog.get_logger("x").info("after", mine=name)

    async def tasks() -> None:
        await asyncio.gather(*(asyncio.create_task(task(name)) for name in "abc"))

    asyncio.run(tasks())
    structlog.get_logger("x").info("outside")
    *written, outside = lines(log)
    assert {(line["event"], line["request_id"], line.get("tenant_id")) for line in written} == {
        pair for name in "abc" for pair in (("inside", name, f"t-{name}"), ("after", name, None))
    }
    assert all(line["mine"] == line["request_id"] for line in written)
    assert "request_id" not in outside


def test_field__wins_over_the_correlation_of_its_name(log: io.StringIO) -> None:
    with correlated(request_id="context"):
        structlog.get_logger("x").info("e", request_id="field")
    assert lines(log)[0]["request_id"] == "field"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "no space"), ValueError("I/O operation on closed file")])
def test_log_that_takes_nothing__fails_nobody(log: io.StringIO, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    asked: list[str] = []

    def refuse(line: str) -> int:
        asked.append(line)
        raise error

    monkeypatch.setattr(log, "write", refuse)
    structlog.get_logger("x").error("e")
    assert len(asked) == 1


def test_correlation__takes_only_its_own_fields() -> None:
    with pytest.raises(ValueError, match="email"), correlated(email="x"):
        pass


USAGE = Usage(wall_us=1000, queue_us=10, cpu_us=900, fuel=12345, peak_memory_bytes=65536, host_calls=2, egress_request_bytes=7)


def series(metrics: Metrics) -> set[str]:
    """Return names and labels of what is exposed."""
    return {line.rpartition(" ")[0] for line in metrics.render().decode().splitlines() if not line.startswith("#")}


def test_series__do_not_grow_with_what_callers_say() -> None:
    metrics = Metrics()
    metrics.usage("completed", USAGE)

    def touch(word: str) -> None:
        metrics.execution(word, word)
        metrics.usage(word, USAGE)
        metrics.host_call(word, word)
        metrics.denial(word)
        metrics.prescan_refusal(word)
        metrics.worker_ended(word)
        metrics.artifact_loaded(word)
        metrics.verification(word)

    touch("other")
    before = len(metrics.render().splitlines())
    for number in range(1000):
        touch(f"word-{number}")
    assert len(metrics.render().splitlines()) == before
    assert b"word-" not in metrics.render()


def test_series_of_closed_sets__are_there_before_anything_happened() -> None:
    metrics = Metrics()
    before = series(metrics)
    for result in VERIFICATION_RESULTS:
        metrics.verification(result)
    for capability in KNOWN:
        metrics.denial(capability)
        for result in HOST_CALL_RESULTS:
            metrics.host_call(capability, result)
    metrics.preparing(waiting=1, fetching=1, compiling=1, oldest_start=1.0)
    assert series(metrics) == before


def test_compilations__are_told_apart_up_to_the_limit_of_a_compiler() -> None:
    metrics = Metrics()
    metrics.compiled(150.0)
    limit = CompilerSettings().wall_seconds
    assert f'extrunner_compile_duration_seconds_bucket{{le="{limit}"}} 1.0' in metrics.render().decode()
    assert 'extrunner_compile_duration_seconds_bucket{le="120.0"} 0.0' in metrics.render().decode()


def test_names__carry_the_prefix_and_figures_arrive() -> None:
    metrics = Metrics()
    metrics.execution("completed", "http")
    metrics.usage("completed", USAGE)
    metrics.refusal(Reason.OVERLOADED)
    metrics.pool(workers=2, slots=32, in_use=3)
    metrics.admission(waiting=1, running=2)
    metrics.hardening({"seccomp": True, "landlock": False})
    metrics.engine("50.0.1", "f" * 64)
    metrics.compiled(2.0)
    metrics.trust_domain(production=False)
    text = metrics.render().decode()
    assert all(line.startswith(("#", "extrunner_")) for line in text.splitlines())
    for expected in (
        'extrunner_executions_total{outcome="completed",trigger="http"} 1.0',
        "extrunner_fuel_used_total 12345.0",
        'extrunner_egress_bytes_total{direction="request"} 7.0',
        'extrunner_refusals_total{reason="OVERLOADED"} 1.0',
        "extrunner_pool_slots_in_use 3.0",
        'extrunner_hardening_applied{step="landlock"} 0.0',
        "extrunner_trust_domain_production 0.0",
    ):
        assert expected in text


def test_problems_of_the_scan__are_all_labels() -> None:
    assert set(PRESCAN_PROBLEMS) == {problem.value for problem in WireProblem} | {"undecodable"}
