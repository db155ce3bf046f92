"""Several cells under one supervisor, in earnest: one port, one page of metrics, and no end of one that is the end of all."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from extrunner.runner.v1 import runner_service_pb2, runner_service_pb2_grpc
from tests.fakes.daemon_process import Machine, Running, alive, descendants, started, stat_of
from tests.fakes.dispatch_kit import eventually

TWO = {"RUNNERD_CELLS": "2", "RUNNERD_WORKERS__FLOOR": "2", "RUNNERD_WORKERS__CEILING": "8"}
COMMAND = (sys.executable, "-m", "runnerd")
LONG = {"RUNNERD_LIMITS__DEFAULTS__CPU_TIME_MS": "10000", "RUNNERD_LIMITS__DEFAULTS__WALL_TIME_MS": "20000"}


def logged(daemon: Running, event: str, service: str = "runnerd") -> list[dict[str, Any]]:
    return [line for line in daemon.lines if line["event"] == event and line["service"] == service]


def cells_of(daemon: Running) -> dict[int, int]:
    """Return index → process id."""
    found = {}
    for pid in descendants(daemon.process.pid):
        facts = stat_of(pid)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if facts is not None and facts[0] == daemon.process.pid and b"--cell" in words:
            found[int(words[words.index(b"--cell") + 1].partition(b"/")[0])] = pid
    return found


def tell_group(daemon: Running, number: signal.Signals) -> None:
    """Signal everything below the supervisor but the assets child, which holds no call."""
    for pid in descendants(daemon.process.pid):
        if b"runnerd.assets" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, number)


async def info(daemon: Running, stub: runner_service_pb2_grpc.RunnerServiceAsyncStub) -> Any:
    return await stub.GetRunnerInfo(runner_service_pb2.GetRunnerInfoRequest(), metadata=daemon.metadata(), timeout=20)


@asynccontextmanager
async def connections(daemon: Running) -> AsyncIterator[dict[int, list[runner_service_pb2_grpc.RunnerServiceAsyncStub]]]:
    """Open connections of their own until every cell has some; the kernel deals them out."""
    found: dict[int, list[runner_service_pb2_grpc.RunnerServiceAsyncStub]] = {}
    channels = []
    try:
        for _ in range(64):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{daemon.ports['grpc_port']}", options=options))
            stub = runner_service_pb2_grpc.RunnerServiceStub(channels[-1])
            answer = await info(daemon, stub)
            assert answer.cells == 2
            found.setdefault(answer.cell, []).append(stub)
            if len(found) == 2:
                break
        yield found
    finally:
        for channel in channels:
            await channel.close()


def samples(page: str, name: str) -> dict[str, float]:
    """Return cell → value of a series without further labels."""
    return {cell: float(value) for cell, value in re.findall(rf'^{name}\{{cell="(\d)"\}} (\S+)$', page, re.MULTILINE)}


async def test_two_cells__one_port_one_page_of_metrics_shares_of_the_limits(machine: Machine) -> None:
    async with started(machine, **TWO) as daemon:
        assert set(cells_of(daemon)) == {0, 1}
        assert "200" in (await daemon.get("/readyz")).partition("\r\n")[0]
        async with connections(daemon) as found:
            assert set(found) == {0, 1}
            for cell, (stub, *_) in found.items():
                described = await info(daemon, stub)
                assert (described.cell, described.workers_max) == (cell, 4)
            for stub, *_ in found.values():
                running = Running(process=daemon.process, ports=daemon.ports, stub=stub, machine=machine, lines=daemon.lines)
                assert (await running.execute("hello")).completed.body == b"hello"
        page = await daemon.get("/metrics")
        for label in ("0", "1"):
            assert f'extrunner_executions_total{{cell="{label}",outcome="completed",trigger="http"}} 1.0' in page
        assert set(samples(page, "extrunner_workers")) == {"0", "1"}
        assert page.count("# TYPE extrunner_executions_total counter") == 1
        assert "extrunner_cells 2.0" in page
        # Interface files are served once, whoever asks.
        served = await daemon.get(f"/ext-ui/com.example.hello/{machine.hashes['hello']}/index.html", "assets_port")
        assert "200 OK" in served
        children = descendants(daemon.process.pid)
    assert daemon.process.returncode == 0
    assert not alive(children)
    assert len(list((machine.folder / "keys").glob("artifacts.ed25519*"))) == 1


async def test_cell_that_dies__is_started_again_and_the_other_serves_on(machine: Machine) -> None:
    async with started(machine, **TWO) as daemon:
        async with connections(daemon) as found:
            survivor = Running(process=daemon.process, ports=daemon.ports, stub=found[0][0], machine=machine, lines=daemon.lines)
            assert (await survivor.execute("hello")).completed.status == 200
            victim = cells_of(daemon)[1]
            below = descendants(victim)
            assert below
            os.kill(victim, signal.SIGKILL)
            for _ in range(5):
                assert (await survivor.execute("hello")).completed.status == 200
            await eventually(lambda: not alive({victim, *below}), seconds=10)
            await eventually(lambda: len(logged(daemon, "cell_serving")) == 3, seconds=30)
        assert cells_of(daemon)[1] != victim
        assert "200" in (await daemon.get("/readyz")).partition("\r\n")[0]
        assert 'extrunner_cell_restarts_total{cell="1"} 1.0' in await daemon.get("/metrics")
        assert logged(daemon, "cell_died")[0]["status"] == -signal.SIGKILL
        async with connections(daemon) as found:
            assert set(found) == {0, 1}


async def test_supervisor_killed__nothing_is_left(machine: Machine) -> None:
    async with started(machine, **TWO) as daemon:
        await daemon.execute("hello")
        children = descendants(daemon.process.pid)
        assert len(children) >= 7, "two cells, two zygotes, two workers, assets"
        daemon.process.send_signal(signal.SIGKILL)
        await daemon.process.wait()
        await eventually(lambda: not alive(children), seconds=10)


@pytest.mark.parametrize("to_all", [False, True])
async def test_sigterm__calls_in_every_cell_end_first(machine: Machine, to_all: bool) -> None:
    """`to_all`: as service managers do it, every process of the group gets the signal."""
    async with started(machine, **TWO, **LONG) as daemon, connections(daemon) as found:
        clients = [
            Running(process=daemon.process, ports=daemon.ports, stub=stubs[0], machine=machine, lines=daemon.lines)
            for stubs in found.values()
        ]
        await asyncio.gather(*(client.execute("hello") for client in clients))
        running = [asyncio.create_task(client.execute("loop", wall_ms=2_500)) for client in clients]
        async with asyncio.timeout(20):
            while sum(samples(await daemon.get("/metrics"), "extrunner_pool_slots_in_use").values()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        children = descendants(daemon.process.pid)
        if to_all:
            tell_group(daemon, signal.SIGTERM)
        daemon.process.terminate()
        await eventually(lambda: bool(logged(daemon, "draining")), seconds=10)
        assert "503" in (await daemon.get("/readyz")).partition("\r\n")[0]
        assert "200" in (await daemon.get("/healthz")).partition("\r\n")[0]
        assert set(samples(await daemon.get("/metrics"), "extrunner_pool_slots_in_use").values()) == {1.0}
        with pytest.raises(grpc.aio.AioRpcError):
            await daemon.execute("hello")
        assert not any(call.done() for call in running)
        assert [answer.limit_exceeded.allowed for answer in await asyncio.gather(*running)] == [2_500, 2_500]
        assert await asyncio.wait_for(daemon.process.wait(), 20) == 0
        assert not alive(children)


async def test_second_sigterm__does_not_wait(machine: Machine) -> None:
    async with started(machine, RUNNERD_DRAIN_SECONDS="600", **TWO, **LONG) as daemon:
        running = asyncio.create_task(daemon.execute("loop", wall_ms=9_000))
        async with asyncio.timeout(20):
            while sum(samples(await daemon.get("/metrics"), "extrunner_pool_slots_in_use").values()) < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        daemon.process.terminate()
        await eventually(lambda: bool(logged(daemon, "draining")), seconds=10)
        daemon.process.terminate()
        with pytest.raises(grpc.aio.AioRpcError):
            await running
        assert await asyncio.wait_for(daemon.process.wait(), 4.5) == 0


async def test_sighup__renews_the_workers_of_every_cell(machine: Machine) -> None:
    async with started(machine, **TWO) as daemon, connections(daemon) as found:
        assert [(await info(daemon, stubs[0])).worker_generation for stubs in found.values()] == [0, 0]
        daemon.process.send_signal(signal.SIGHUP)
        for cell in found:
            await eventually(lambda: bool(logged(daemon, "generation_started", f"runnerd-{cell}")), seconds=20)  # noqa: B023
        assert [(await info(daemon, stubs[0])).worker_generation for stubs in found.values()] == [1, 1]


async def test_port_in_use_by_another_daemon__is_an_error_and_not_shared(machine: Machine) -> None:
    async with started(machine, **TWO) as daemon:
        second = machine.environment(RUNNERD_GRPC__ADDRESS=f"127.0.0.1:{daemon.ports['grpc_port']}", **TWO)
        process = await asyncio.create_subprocess_exec(*COMMAND, env=second, stderr=asyncio.subprocess.PIPE)
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 1
        assert b"Address already in use" in errors
        assert (await daemon.execute("hello")).completed.status == 200


async def test_cells_that_cannot_start__end_everything_with_their_status(machine: Machine) -> None:
    environment = machine.environment(**TWO, RUNNERD_TRUST_DOMAINS_FILE="/nonexistent/trust.json")
    process = await asyncio.create_subprocess_exec(*COMMAND, env=environment, stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"a cell could not start" in errors
    assert not descendants(process.pid)
