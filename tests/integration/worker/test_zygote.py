from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runnerd.dispatch.zygote import ForkedWorker, Zygote, ZygoteError
from runnerd.worker.priority import NICENESS
from runnerd.worker.settings import EXIT_HARDENING, WorkerConfig
from tests.fakes.worker_driver import WorkerDriver, status_of

NO_STEP = """
import sys
from runnerd.worker import hardening, zygote
def fail(*_arguments, **_named):
    raise OSError(38, "not here")
hardening.{step} = fail
sys.exit(zygote.main(sys.argv[1:]))
"""
ORDINARY_USER = """
import os, sys
from importlib import metadata
from runnerd.engine.profile import engine_fingerprint
from runnerd.worker import kernel, zygote
engine_fingerprint(); metadata.version("extrunner")
os.setgroups([]); os.setresgid(1234, 1234, 1234); os.setresuid(1234, 1234, 1234)
kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
sys.exit(zygote.main(sys.argv[1:]))
"""

BORN_LATE = """
import os, sys, time
from runnerd.worker import zygote
run_worker = zygote.run_worker
def late(*arguments, parent, **named):
    while os.getppid() == parent:
        time.sleep(0.01)
    run_worker(*arguments, parent=parent, **named)
zygote.run_worker = late
sys.exit(zygote.main(sys.argv[1:]))
"""
DEAF = """
import sys
from runnerd.worker import hardening, zygote
hardening.die_with_parent = lambda parent=None: None
sys.exit(zygote.main(sys.argv[1:]))
"""


def command(tmp_path: Path, text: str) -> list[str]:
    script = tmp_path / "zygote_variant.py"
    script.write_text(text, encoding="utf-8")
    return [sys.executable, "-I", str(script)]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return True


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while not is_gone(pid):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


async def test_workers__many__each_answer(zygote: Zygote) -> None:
    forked = [await zygote.fork_worker(WorkerConfig(slots=2)) for _ in range(6)]

    assert len({worker.pid for worker in forked}) == 6
    async with contextlib.AsyncExitStack() as stack:
        drivers = [await stack.enter_async_context(WorkerDriver(worker)) for worker in forked]
        ended = await asyncio.gather(*(driver.call("hello") for driver in drivers))
    assert {result.body for result in ended} == {b"hello"}


async def test_kill__worker__is_reported_with_its_signal(zygote: Zygote) -> None:
    forked = await zygote.fork_worker(WorkerConfig())
    forked.kill()

    assert await asyncio.wait_for(forked.wait_exit(), 10) == -signal.SIGKILL
    assert forked.has_exited
    forked.kill()
    forked.sock.close()


async def test_killed_in_mid_call__the_socket_closes_and_a_new_worker_works(zygote: Zygote) -> None:
    forked = await zygote.fork_worker(WorkerConfig())
    async with WorkerDriver(forked) as worker:
        call = await worker.begin("spin_forever", wall_time_us=30_000_000)
        await asyncio.sleep(0.05)
        os.kill(forked.pid, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            await worker.end_of(call)
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig())) as worker:
        assert (await worker.call("hello")).body == b"hello"


async def test_zygote_killed__its_workers_die_and_another_is_started(zygote: Zygote) -> None:
    first = zygote.pid
    assert first is not None
    forked = await zygote.fork_worker(WorkerConfig())
    async with WorkerDriver(forked) as worker:
        await worker.begin("spin_forever", wall_time_us=30_000_000)
        os.kill(first, signal.SIGKILL)
        assert await asyncio.wait_for(forked.wait_exit(), 10) == -signal.SIGKILL
        await until_gone(forked.pid)
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig())) as worker:
        assert (await worker.call("hello")).body == b"hello"
    assert zygote.pid != first


async def test_close__ends_zygote_and_workers() -> None:
    zygote = await Zygote.start()
    pid, forked = zygote.pid, await zygote.fork_worker(WorkerConfig())
    assert pid is not None
    await zygote.aclose()

    assert forked.has_exited
    assert is_gone(pid)
    assert is_gone(forked.pid)
    forked.sock.close()
    with pytest.raises(ZygoteError):
        await zygote.fork_worker(WorkerConfig())


async def test_zygote_dies_before_its_worker_asked_to_die_with_it__the_worker_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent-death signal is sent only for deaths after it was asked for."""
    monkeypatch.setattr(ForkedWorker, "kill", lambda _self: None)
    zygote = await Zygote.start(command=command(tmp_path, BORN_LATE))
    forked = await zygote.fork_worker(WorkerConfig())
    await zygote.aclose()

    await until_gone(forked.pid)
    forked.sock.close()


async def test_close__worker_that_ignores_its_parents_death__is_gone_too(tmp_path: Path) -> None:
    zygote = await Zygote.start(command=command(tmp_path, DEAF))
    forked = await zygote.fork_worker(WorkerConfig())
    await zygote.aclose()

    assert is_gone(forked.pid)
    forked.sock.close()


async def test_daemon_killed__zygote_and_workers_die() -> None:
    daemon = """
import asyncio
from runnerd.dispatch.zygote import Zygote
from runnerd.worker.priority import NICENESS
from runnerd.worker.settings import EXIT_HARDENING, WorkerConfig
async def main():
    zygote = await Zygote.start()
    worker = await zygote.fork_worker(WorkerConfig())
    print(zygote.pid, worker.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", daemon, stdout=subprocess.PIPE)
    assert process.stdout is not None
    zygote, worker = (int(part) for part in (await asyncio.wait_for(process.stdout.readline(), 60)).split())
    process.kill()
    await process.wait()

    await until_gone(zygote)
    await until_gone(worker)


async def test_command_that_is_no_zygote__is_an_error() -> None:
    with pytest.raises(ZygoteError, match="ended"):
        await Zygote.start(command=[sys.executable, "-c", "pass"])


async def test_zygote__holds_one_thread_and_no_engine(zygote: Zygote) -> None:
    status = status_of(zygote.pid or 0)
    memory = int(status.split("VmSize:")[1].split()[0])

    assert "Threads:\t1\n" in status
    assert memory < 2 * 1024 * 1024  # KiB: an engine's pool reserves hundreds of GiB


async def test_mandatory_step_that_fails__the_worker_ends(tmp_path: Path) -> None:
    zygote = await Zygote.start(command=command(tmp_path, NO_STEP.format(step="_filter_calls")))
    forked = await zygote.fork_worker(WorkerConfig())

    assert await asyncio.wait_for(forked.wait_exit(), 20) == EXIT_HARDENING
    forked.sock.close()
    await zygote.aclose()


async def test_mandatory_step_that_fails__in_development__is_said_in_hello(tmp_path: Path) -> None:
    zygote = await Zygote.start(command=command(tmp_path, NO_STEP.format(step="_filter_calls")))
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig(require_hardening=False))) as worker:
        assert "not here" in worker.hello.hardening_missing["seccomp"]
        assert (await worker.call("hello")).body == b"hello"
    await zygote.aclose()


@pytest.mark.parametrize("step", ["_landlock", "_enter_namespaces"])
async def test_additional_step_that_fails__the_worker_works_and_says_so(tmp_path: Path, step: str) -> None:
    zygote = await Zygote.start(command=command(tmp_path, NO_STEP.format(step=step)))
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig())) as worker:
        assert step.removeprefix("_").removeprefix("enter_") in worker.hello.hardening_missing
        assert (await worker.call("echo", body=b"x" * 100_000)).body == b"x" * 100_000
    await zygote.aclose()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
async def test_ordinary_user__workers_are_hardened_and_work(tmp_path: Path) -> None:
    zygote = await Zygote.start(command=command(tmp_path, ORDINARY_USER))
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig())) as worker:
        status = status_of(worker.process.pid)
        assert (await worker.call("hello")).body == b"hello"
    await zygote.aclose()

    assert "Uid:\t1234\t1234\t1234\t1234" in status
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


def threads_of(pid: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


async def test_worker__is_weighed_as_one_and_stands_behind_the_daemon(zygote: Zygote) -> None:
    async with (
        WorkerDriver(await zygote.fork_worker(WorkerConfig())) as one,
        WorkerDriver(await zygote.fork_worker(WorkerConfig())) as two,
    ):
        # Threads of slots are made when they are needed; whatever is made later stands where its process does.
        loops = [await one.begin("spin_forever", wall_time_us=500_000) for _ in range(4)]
        assert (await one.call("hello")).body == b"hello"
        daemon = os.getpriority(os.PRIO_PROCESS, 0)
        threads = threads_of(one.process.pid)
        assert len(threads) > 4
        assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {min(19, daemon + NICENESS)}
        for worker in (one, two):
            assert os.getsid(worker.process.pid) == worker.process.pid
        groups = [Path(f"/proc/{worker.process.pid}/autogroup") for worker in (one, two)]
        if all(group.exists() for group in groups):
            said = [group.read_text(encoding="ascii").split() for group in groups]
            assert [nice for _, _, nice in said] == [str(NICENESS)] * 2
            assert said[0][0] != said[1][0]
        for loop in loops:
            assert (await one.end_of(loop)).limit == "wall_time"
