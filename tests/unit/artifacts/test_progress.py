from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts.compiler import Compiler, CompilerSettings
from runnerd.artifacts.progress import ProgressBoard, Stage
from runnerd.artifacts.slots import CompileSlots
from tests.fakes.hostile_compilers import HONEST, program
from tests.fakes.loading import FINGERPRINT, WASM, Installation, RecordingMetrics, make_bundle


def test_a_preparation_is_shown_from_stage_to_stage_and_then_gone(caplog: pytest.LogCaptureFixture) -> None:
    metrics = RecordingMetrics()
    board, bundle = ProgressBoard(metrics), make_bundle().loadable
    assert board.describe(bundle.content_hash) == {}
    with caplog.at_level(logging.INFO), board.preparing(bundle) as preparation:
        assert board.describe(bundle.content_hash) == {"stage": "looking", "elapsed_seconds": "0"}
        preparation.waiting(lambda: 7)
        assert board.describe(bundle.content_hash) == {"stage": "waiting", "elapsed_seconds": "0", "ahead": "7"}
        preparation.fetching()
        assert board.describe(bundle.content_hash) == {"stage": "fetching", "elapsed_seconds": "0"}
        preparation.began, preparation.stage_began = time.monotonic() - 100, time.monotonic() - 60
        preparation.compiling()
        assert board.describe(bundle.content_hash)["stage"] == "compiling"
    assert board.describe(bundle.content_hash) == {}
    assert metrics.stages == [(1, 0, False), (0, 0, False), (0, 1, True), (0, 0, False)]
    assert metrics.fetching == [0, 1, 0, 0]
    assert [record.message for record in caplog.records] == ["compilation started", "compilation ended"]
    started, ended = (record.__dict__ for record in caplog.records)
    # Fetching is no waiting.
    assert started["waited_seconds"] == pytest.approx(40, abs=0.01)
    assert started["fetch_seconds"] >= 60
    assert (ended["content_hash"], ended["publisher"], ended["compiled"]) == (bundle.content_hash, "example", True)


def test_a_failure_is_said_and_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    metrics = RecordingMetrics()
    board, bundle = ProgressBoard(metrics), make_bundle().loadable
    with caplog.at_level(logging.INFO), contextlib.suppress(RefusalError), board.preparing(bundle) as preparation:
        preparation.compiling()
        raise RefusalError(Reason.COMPILE_REJECTED, "no")
    assert caplog.records[-1].__dict__["compiled"] is False
    assert metrics.stages[-1] == (0, 0, False)


def test_what_came_from_the_cache_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), ProgressBoard(RecordingMetrics()).preparing(make_bundle().loadable) as preparation:
        assert preparation.stage is Stage.LOOKING
    assert caplog.records == []


async def test_the_turns_before_one_are_counted_as_they_will_be_served() -> None:
    slots = CompileSlots(slots=1, waiting_per_publisher=100, waiting=100)
    order: list[str] = []
    ahead: dict[str, list[int]] = {}

    async def hold(publisher: str, name: str) -> None:
        def waits(count: object) -> None:
            counts[name] = count

        async with slots.slot(publisher, on_wait=waits):
            order.append(name)
            for other, count in counts.items():
                if other not in order:
                    ahead.setdefault(other, []).append(count())  # type: ignore[operator]
            await asyncio.sleep(0)

    counts: dict[str, object] = {}
    tasks = [
        asyncio.create_task(hold(publisher, name))
        for publisher, name in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("c", "c1"), ("a", "a4"))
    ]
    await asyncio.gather(*tasks)
    # While the n-th is served, whoever comes k turns later must have been told that k - 1 come before it.
    for name, said in ahead.items():
        place = order.index(name)
        assert said[-place:] == [place - served - 1 for served in range(place)][-len(said) :], (name, order)


async def test_who_is_told_compiling_hears_the_stage_and_the_turns_before_it(tmp_path: Path) -> None:
    installation = Installation(folder=tmp_path / "home")
    gate = tmp_path / "gate"
    body = f"""
while not os.path.exists({str(gate)!r}): time.sleep(0.01)
{HONEST}
"""
    settings = CompilerSettings(wall_seconds=60, require_hardening=False)
    compiler = Compiler(settings, engine_fingerprint=FINGERPRINT, command=program(tmp_path, body))
    bundles = [
        await installation.publish(make_bundle(f"com.example.n{number}", wasm=WASM + bytes([number]), publisher=f"p{number}"))
        for number in range(3)
    ]
    loader = installation.loader(compiler=compiler)

    async def stage(number: int) -> dict[str, str]:
        with pytest.raises(RefusalError) as caught:
            await loader.load(bundles[number].hash, wait_seconds=0.3)
        assert caught.value.reason is Reason.COMPILING
        return caught.value.metadata

    said = [await stage(number) for number in range(3)]
    assert [one["stage"] for one in said] == ["compiling", "waiting", "waiting"]
    assert [one.get("ahead") for one in said] == [None, "0", "1"]
    assert installation.metrics.stages[-1] == (2, 1, True)
    gate.touch()
    for bundle in bundles:
        await loader.load(bundle.hash)
    assert installation.metrics.stages[-1] == (0, 0, False)
    await loader.aclose()
