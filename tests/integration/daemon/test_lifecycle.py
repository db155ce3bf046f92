"""The daemon's life as an operator sees it: SIGHUP renews the workers, SIGTERM drains, and nothing is left whatever ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.fakes.daemon_process import Machine, Running, alive, descendants, started
from tests.fakes.dispatch_kit import eventually

LONG_MS = 9_000
LONG = {"RUNNERD_LIMITS__DEFAULTS__CPU_TIME_MS": "10000", "RUNNERD_LIMITS__DEFAULTS__WALL_TIME_MS": "20000"}


def logged(daemon: Running, event: str) -> list[dict[str, Any]]:
    return [line for line in daemon.lines if line["event"] == event]


def workers_of(daemon: Running) -> set[int]:
    """Children of children: the zygotes' children."""
    direct = {pid for pid in descendants(daemon.process.pid) if b"runnerd.worker.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()}
    zygotes = {pid for pid in direct if descendants(pid)}
    return direct - zygotes


async def in_use(daemon: Running, calls: int) -> None:
    async with asyncio.timeout(20):
        while f"extrunner_pool_slots_in_use {calls:.1f}" not in await daemon.get("/metrics"):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


async def test_sighup__new_workers_while_calls_run_and_none_fails(machine: Machine) -> None:
    async with started(machine, **LONG) as daemon:
        await daemon.execute("hello")
        stop, served = False, 0

        async def load() -> None:
            nonlocal served
            while not stop:
                assert (await daemon.execute("hello")).completed.body == b"hello"
                served += 1

        clients = [asyncio.create_task(load()) for _ in range(3)]
        running = asyncio.create_task(daemon.execute("loop", wall_ms=1_500))
        await eventually(lambda: served > 3, seconds=20)
        old = workers_of(daemon)
        assert old
        daemon.process.send_signal(signal.SIGHUP)
        await eventually(lambda: bool(logged(daemon, "generation_started")), seconds=20)
        before = served
        assert (await running).limit_exceeded.allowed == 1_500
        await eventually(lambda: served > before + 3, seconds=20)
        await eventually(lambda: bool(logged(daemon, "generation_left")), seconds=20)
        stop = True
        await asyncio.gather(*clients)
        assert not alive(old)
        assert 'extrunner_worker_generations_total{result="started"} 1.0' in await daemon.get("/metrics")
        children = descendants(daemon.process.pid)
    assert daemon.process.returncode == 0
    assert not alive(children)


async def test_sigterm__health_first_then_the_call_ends_while_the_ops_listener_answers(machine: Machine) -> None:
    async with started(machine, **LONG) as daemon:
        await daemon.execute("hello")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{daemon.ports['grpc_port']}") as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            watching = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
            running = asyncio.create_task(daemon.execute("loop", wall_ms=2_000))
            await in_use(daemon, 1)
            workers = workers_of(daemon)
            daemon.process.terminate()
            assert (await asyncio.wait_for(watching.read(), 10)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watching.cancel()
        assert "503" in (await daemon.get("/readyz")).partition("\r\n")[0]
        assert "200" in (await daemon.get("/healthz")).partition("\r\n")[0]
        assert "extrunner_pool_slots_in_use 1.0" in await daemon.get("/metrics")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await daemon.execute("hello")
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert alive(workers) == workers
        assert not running.done()
        assert (await running).limit_exceeded.allowed == 2_000
        assert await asyncio.wait_for(daemon.process.wait(), 20) == 0
    assert not alive(workers)
    assert [line["event"] for line in daemon.lines][-1] == "stopped"


async def test_grace_over__calls_are_ended_and_the_daemon_stops(machine: Machine) -> None:
    async with started(machine, RUNNERD_DRAIN_SECONDS="0.5", **LONG) as daemon:
        running = asyncio.create_task(daemon.execute("loop", wall_ms=LONG_MS))
        await in_use(daemon, 1)
        daemon.process.terminate()
        with pytest.raises(grpc.aio.AioRpcError):
            await running
        # Long before the call's own time.
        assert await asyncio.wait_for(daemon.process.wait(), LONG_MS / 2_000) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal__does_not_wait(machine: Machine, second: signal.Signals) -> None:
    async with started(machine, RUNNERD_DRAIN_SECONDS="600", **LONG) as daemon:
        running = asyncio.create_task(daemon.execute("loop", wall_ms=LONG_MS))
        await in_use(daemon, 1)
        children = descendants(daemon.process.pid)
        daemon.process.terminate()
        await eventually(lambda: bool(logged(daemon, "draining")), seconds=10)
        assert "503" in await daemon.get("/readyz")
        assert not running.done()
        daemon.process.send_signal(second)
        with pytest.raises(grpc.aio.AioRpcError):
            await running
        assert await asyncio.wait_for(daemon.process.wait(), LONG_MS / 2_000) == 0
    assert not alive(children)


async def test_sigterm_while_starting__stops_and_leaves_nothing(machine: Machine) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "runnerd", env=machine.environment(), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        # Its zygote takes a second to import; so there is one before the daemon serves.
        await eventually(lambda: bool(descendants(process.pid)), seconds=30)
        children = descendants(process.pid)
        process.terminate()
        lines = (await asyncio.wait_for(process.stderr.read(), 20)).decode().splitlines()
        assert await process.wait() == 0
        assert not any('"serving"' in line for line in lines)
        assert '"stopped"' in lines[-1]
        assert not alive(children)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
