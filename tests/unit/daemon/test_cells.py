"""Cells, in parts: shares of limits and CPUs, the channel, the merged metrics, the port, and a supervisor over scripted cells."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from registry.domain.limits import MIB
from runnerd.cells import supervisor as module
from runnerd.cells.channel import Channel
from runnerd.cells.exposition import Merged, families
from runnerd.cells.ports import reserve
from runnerd.cells.supervisor import CellStartError, Supervisor
from runnerd.config import Cell, RunnerdSettings, load
from runnerd.dispatch import capacity
from runnerd.dispatch.cpus import Cpus
from runnerd.telemetry.metrics import Metrics
from tests.fakes.daemon_settings import smallest_environment
from tests.fakes.dispatch_kit import eventually

# --- shares -------------------------------------------------------------------------------------------------------------------------


@given(usable=st.integers(1, 64), pinned=st.booleans(), count=st.integers(1, 16))
def test_cpus__are_dealt_out_completely_and_nobody_is_left_without(usable: int, pinned: bool, count: int) -> None:
    cpus = Cpus(usable=usable, pin_to=tuple(range(usable)) if pinned else ())
    parts = [cpus.part(index, count) for index in range(count)]

    assert all(part.usable >= 1 for part in parts)
    if count <= usable:
        assert sum(part.usable for part in parts) == usable
        assert [cpu for part in parts for cpu in part.pin_to] == list(cpus.pin_to)
    assert all(bool(part.pin_to) == pinned for part in parts)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunnerdSettings:
    for name, value in smallest_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RUNNERD_OPS__ADDRESS", "127.0.0.1:0")
    monkeypatch.setenv("RUNNERD_GRPC__ADDRESS", "127.0.0.1:0")
    monkeypatch.setenv("RUNNERD_DRAIN_SECONDS", "1")
    return load()


def test_cell_alone__has_everything(settings: RunnerdSettings) -> None:
    assert settings.share_of(Cell(), grpc_port=7) is settings


def test_each_cell__has_its_share_of_what_the_daemon_may_and_one_serves_interfaces(settings: RunnerdSettings) -> None:
    shares = [settings.share_of(Cell(index=index, count=3), grpc_port=7) for index in range(3)]

    assert [share.assets.enabled for share in shares] == [True, False, False]
    for share in shares:
        assert share.grpc.address == "127.0.0.1:7"
        assert 85 * MIB < share.grpc.request_bytes_in_flight < 86 * MIB
        assert share.grpc.max_concurrent_rpcs == 683
        assert share.admission.waiting == 171
        assert share.admission.running == 0, "still left to the CPUs of the cell"
        assert share.database.pool_size == 3
        assert (share.workers.floor, share.workers.ceiling, share.workers.memory_bytes) == (0, 0, 0), "still left to the machine"
        # A client's connection ends in one cell: its tenant's bounds stay.
        assert (share.admission.per_tenant, share.admission.per_install) == (16, 8)


def test_cells__share_the_running_calls_that_an_operator_allows(settings: RunnerdSettings) -> None:
    said = settings.model_copy(update={"admission": settings.admission.model_copy(update={"running": 10})})

    assert said.share_of(Cell(index=0, count=3), grpc_port=7).admission.running == 4


def test_many_cells__keep_what_they_need_at_least(settings: RunnerdSettings) -> None:
    share = settings.share_of(Cell(index=200, count=256), grpc_port=7)

    assert share.grpc.request_bytes_in_flight == 33 * MIB
    assert share.database.pool_size == 2
    assert share.admission.waiting >= 1


@pytest.mark.parametrize(
    ("cpus", "memory_gib", "said", "cells"),
    [(1, 64, 0, 1), (7, 64, 0, 1), (8, 64, 0, 2), (32, 64, 0, 8), (32, 4, 0, 4), (8, 1, 0, 1), (64, 1, 0, 1), (1, 1, 5, 5)],
)
def test_cells__are_what_is_said_or_what_cpus_and_memory_give(
    settings: RunnerdSettings, monkeypatch: pytest.MonkeyPatch, cpus: int, memory_gib: int, said: int, cells: int
) -> None:
    monkeypatch.setattr(capacity, "find_cpus", lambda _pinning: Cpus(usable=cpus, pin_to=()))
    monkeypatch.setattr(capacity, "find_memory", lambda: memory_gib * 1024 * MIB)
    assert capacity.cells_of(settings.model_copy(update={"cells": said})) == cells


# --- metrics ------------------------------------------------------------------------------------------------------------------------


def test_metrics_of_two_cells__are_one_page_with_a_label() -> None:
    cells = {index: Metrics() for index in range(2)}
    cells[0].execution("completed", "http")
    cells[1].execution("completed", "http")
    cells[1].execution("completed", "http")
    cells[1].compiled(3.0)
    merged = CollectorRegistry()
    merged.register(Merged({index: families(metrics.registry) for index, metrics in cells.items()}))
    page = generate_latest(merged).decode()

    parsed = {family.name: family for family in text_string_to_metric_families(page)}
    counted = {
        sample.labels["cell"]: sample.value
        for sample in parsed["extrunner_executions"].samples
        if sample.labels.get("outcome") == "completed" and sample.labels["trigger"] == "http" and sample.name.endswith("_total")
    }
    assert counted == {"0": 1.0, "1": 2.0}
    assert all("cell" in sample.labels for family in parsed.values() for sample in family.samples)
    alone = {family.name for family in text_string_to_metric_families(cells[0].render().decode())}
    assert parsed.keys() == alone
    assert page.count("# TYPE extrunner_compile_duration_seconds histogram") == 1


# --- the channel --------------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def channels(answer: Any) -> AsyncIterator[tuple[Channel, Channel]]:
    """Give two ends; the second answers."""
    one, other = socket.socketpair()
    ends = (await Channel.open(one, lambda _what, _value: None), await Channel.open(other, answer))
    reading = [asyncio.create_task(end.run()) for end in ends]
    try:
        yield ends
    finally:
        for end in ends:
            end.close()
        await asyncio.gather(*reading)


async def test_channel__asks_tells_and_answers() -> None:
    told: list[tuple[str, Any]] = []

    def answer(what: str, value: Any) -> object:
        told.append((what, value))
        return {"what": what}

    async with channels(answer) as (end, _):
        end.tell("stop", [1])
        answers = await asyncio.gather(*(end.ask(f"q{number}", seconds=5) for number in range(20)))
    assert answers == [{"what": f"q{number}"} for number in range(20)]
    assert told[0] == ("stop", [1])


async def test_channel__other_end_gone__is_an_error_at_once() -> None:
    async with channels(lambda _what, _value: None) as (end, other):
        other.close()
        with pytest.raises(ConnectionError):
            await end.ask("ready", seconds=30)
        with pytest.raises(ConnectionError):
            await end.ask("ready", seconds=30)
        end.tell("stop")


async def test_channel__other_end_silent__ends_in_time() -> None:
    one, other = socket.socketpair()
    end = await Channel.open(one, lambda _what, _value: None)
    reading = asyncio.create_task(end.run())
    with other, pytest.raises(TimeoutError):
        await end.ask("ready", seconds=0.05)
    await reading


@pytest.mark.parametrize("nonsense", [b"no json\n", b"{}\n", b'{"answer":1}\n', b"7\n", b"[]\n"])
async def test_channel__nonsense__ends_it_and_is_logged(nonsense: bytes) -> None:
    one, other = socket.socketpair()
    end = await Channel.open(one, lambda _what, _value: None)
    with other, capture_logs() as lines:
        other.send(nonsense)
        await asyncio.wait_for(end.run(), 5)
    assert [line["event"] for line in lines] == ["channel_broken"]
    with pytest.raises(ConnectionError):
        await end.ask("ready", seconds=1)


# --- the port -----------------------------------------------------------------------------------------------------------------------


def listening(port: int, *, reuse: bool) -> socket.socket:
    end = socket.socket()
    if reuse:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        end.bind(("127.0.0.1", port))
        end.listen()
    except OSError:
        end.close()
        raise
    return end


def test_reserved_port__is_the_cells_and_nobody_connects_to_the_reservation() -> None:
    with reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        assert port > 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        with listening(port, reuse=True), listening(port, reuse=True):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(OSError, match="in use"):
            listening(port, reuse=False)


@pytest.mark.parametrize("reuse", [False, True])
def test_port_where_somebody_listens__is_refused_even_where_it_could_be_shared(reuse: bool) -> None:
    with listening(0, reuse=reuse) as other, pytest.raises(OSError, match="in use"):
        reserve("127.0.0.1", other.getsockname()[1])


# --- the supervisor -----------------------------------------------------------------------------------------------------------------

SCRIPTED = """
import argparse, json, os, signal, socket, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
parser = argparse.ArgumentParser()
for name in ("--cell", "--supervisor", "--grpc-port", "--control-fd"):
    parser.add_argument(name)
options = parser.parse_args()
index = options.cell.partition("/")[0]
control = socket.socket(fileno=int(options.control_fd))
def say(**message):
    control.sendall(json.dumps(message).encode() + b"\\n")
marks = len(os.listdir({folder!r}))
open(os.path.join({folder!r}, f"{{index}}-{{os.getpid()}}"), "w").close()
{start}
say(what="serving", value={{"grpc_port": int(options.grpc_port), "assets_port": None}})
for line in control.makefile("r"):
    message = json.loads(line)
    {behave}
    if message["what"] == "stop":
        sys.exit(0)
    if "number" in message:
        say(number=message["number"], answer=True if message["what"] == "ready" else [])
"""


class Scripted:
    """A supervisor over scripted cells, running in the background."""

    def __init__(self, settings: RunnerdSettings, folder: Path, *, start: str = "", behave: str = "pass", cells: int = 2) -> None:
        self.marks = folder / "marks"
        self.marks.mkdir()
        script = folder / "cell.py"
        script.write_text(SCRIPTED.format(folder=str(self.marks), start=start, behave=behave), encoding="utf-8")
        self.supervisor = Supervisor(settings, cells, command=[sys.executable, "-I", str(script)])
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.supervisor.run())
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self.task is not None
        if not self.task.done():
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait({self.task}, timeout=20)
        self.task.cancel()
        with contextlib.suppress(CellStartError):
            await self.task
        assert not self.alive

    @property
    def pids(self) -> list[str]:
        """Process ids of all cells that were ever started."""
        return [mark.name.partition("-")[2] for mark in self.marks.iterdir()]

    @property
    def alive(self) -> list[str]:
        """Those of them that still run."""
        return [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]

    def started(self, index: int) -> int:
        return sum(mark.name.startswith(f"{index}-") for mark in self.marks.iterdir())

    def metric(self, name: str, **labels: str) -> float | None:
        return self.supervisor._registry.get_sample_value(f"extrunner_{name}", labels)


async def test_supervisor__starts_all_answers_and_stops(settings: RunnerdSettings, tmp_path: Path) -> None:
    async with Scripted(settings, tmp_path, cells=3) as case:
        await eventually(lambda: case.metric("cells") == 3, seconds=20)
        assert await case.supervisor._is_ready()
        assert b"extrunner_cells_configured 3.0" in await case.supervisor._render()
        assert [case.started(index) for index in range(3)] == [1, 1, 1]


async def test_first_cell_that_cannot_start__others_are_never_tried(settings: RunnerdSettings, tmp_path: Path) -> None:
    async with Scripted(settings, tmp_path, start="sys.exit(3)") as case:
        assert case.task is not None
        with pytest.raises(CellStartError) as failed:
            await asyncio.wait_for(case.task, 20)
        assert failed.value.status == 3
        assert (case.started(0), case.started(1)) == (1, 0)


async def test_later_cell_that_cannot_start__ends_the_first_one_too(settings: RunnerdSettings, tmp_path: Path) -> None:
    async with Scripted(settings, tmp_path, start="index == '1' and sys.exit(1)") as case:
        assert case.task is not None
        with pytest.raises(CellStartError):
            await asyncio.wait_for(case.task, 20)


async def test_cell_that_dies_again_and_again__comes_back_each_time_after_a_longer_pause(
    settings: RunnerdSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(module, "BACKOFF_LAST_SECONDS", 0.05)
    async with Scripted(settings, tmp_path, start="index == '1' and marks > 1 and marks < 6 and sys.exit(1)") as case:
        await eventually(lambda: case.metric("cells") == 2, seconds=20)
        victim = case.supervisor._members[1].process
        assert victim is not None
        with capture_logs() as lines:
            victim.kill()
            await eventually(lambda: case.metric("cell_restarts_total", cell="1") == 5 and case.metric("cells") == 2, seconds=20)
        assert [line["again_in"] for line in lines if line["event"] == "cell_died"] == [0.01, 0.02, 0.04, 0.05, 0.05]
        assert case.metric("cell_restarts_total", cell="0") == 0


async def test_no_process_left_for_a_while__the_cell_comes_back(
    settings: RunnerdSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_FIRST_SECONDS", 0.01)
    start, failures = asyncio.create_subprocess_exec, 0

    async def fail_twice(*arguments: Any, **named: Any) -> asyncio.subprocess.Process:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await start(*arguments, **named)

    async with Scripted(settings, tmp_path) as case:
        await eventually(lambda: case.metric("cells") == 2, seconds=20)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", fail_twice)
        victim = case.supervisor._members[1].process
        assert victim is not None
        victim.kill()
        await eventually(lambda: case.metric("cell_restarts_total", cell="1") == 3 and case.metric("cells") == 2, seconds=20)


async def test_cell_whose_loop_hangs__is_replaced(settings: RunnerdSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.3)
    async with Scripted(settings, tmp_path, behave="index == '1' and marks < 2 and time.sleep(600)") as case:
        await eventually(lambda: case.metric("cell_restarts_total", cell="1") == 1, seconds=20)
        await eventually(lambda: case.metric("cells") == 2, seconds=20)
        assert await case.supervisor._is_ready()


async def test_cell_that_does_not_stop__is_ended(settings: RunnerdSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_MARGIN_SECONDS", 0.2)
    async with Scripted(settings, tmp_path, behave="message['what'] == 'stop' and time.sleep(600)") as case:
        await eventually(lambda: case.metric("cells") == 2, seconds=20)


async def test_stop_while_a_cell_starts__ends_everything(settings: RunnerdSettings, tmp_path: Path) -> None:
    async with Scripted(settings, tmp_path, start="index == '1' and time.sleep(600)") as case:
        await eventually(lambda: case.started(1) == 1, seconds=20)
        assert not await case.supervisor._is_ready()


async def test_cell_whose_channel_is_gone__is_replaced(settings: RunnerdSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GONE_SECONDS", 0.05)
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.05)
    with capture_logs() as lines:
        async with Scripted(settings, tmp_path, behave="index == '1' and marks < 2 and (control.shutdown(2), time.sleep(600))") as case:
            await eventually(lambda: case.metric("cell_restarts_total", cell="1") == 1, seconds=20)
            await eventually(lambda: case.metric("cells") == 2, seconds=20)
            assert await case.supervisor._is_ready()
    assert [line["event"] for line in lines].count("cell_unreachable") == 1
