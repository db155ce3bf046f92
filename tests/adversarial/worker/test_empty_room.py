"""What a live worker holds: nothing that opens another door (T2, T22, N35)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from extrunner.worker.v1 import worker_pb2
from runnerd.dispatch.zygote import Zygote
from runnerd.worker.settings import WorkerConfig
from tests.fakes.worker_driver import WorkerDriver, status_of

FORBIDDEN_MODULES = (
    "grpc",
    "sqlalchemy",
    "sqlmodel",
    "psycopg",
    "httpx",
    "aiohttp",
    "google.cloud",
    "sigstore",
    "jwt",
    "cryptography",
    "ssl",
)


def field(status: str, name: str) -> str:
    return status.split(f"\n{name}:")[1].split("\n", 1)[0].strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="the user changes only for root")
async def test_status__of_a_worker__says_hardened(worker: WorkerDriver) -> None:
    await worker.call("hello")
    status = status_of(worker.process.pid)

    assert field(status, "Seccomp") == "2"
    assert field(status, "NoNewPrivs") == "1"
    assert {field(status, name) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert field(status, "Uid").split() == ["65534"] * 4
    assert field(status, "Gid").split() == ["65534"] * 4
    assert field(status, "Groups") == ""


def descriptors_of(pid: int) -> list[str]:
    return sorted(str(link.readlink()).split(":")[0] for link in Path(f"/proc/{pid}/fd").iterdir())


async def test_descriptors__of_a_worker__are_its_socket_and_three_nulls(worker: WorkerDriver) -> None:
    assert descriptors_of(worker.process.pid) == ["/dev/null", "/dev/null", "/dev/null", "socket"]
    await worker.call("hello")

    # The engine keeps the sealed artifact, whose pages it maps for each instance.
    assert descriptors_of(worker.process.pid) == ["/dev/null", "/dev/null", "/dev/null", "/memfd", "socket"]


async def test_environment__of_zygote_and_worker__holds_nothing_of_the_daemons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "marker-of-a-secret")
    zygote = await Zygote.start()
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig())) as worker:
        found = [Path(f"/proc/{pid}/environ").read_bytes() for pid in (zygote.pid, worker.process.pid)]  # noqa: ASYNC240
    await zygote.aclose()

    assert found[0].strip(b"\0") in {b"LC_ALL=C.UTF-8", b""}
    assert b"marker" not in found[0] + found[1]


async def test_limits__of_a_worker(worker: WorkerDriver) -> None:
    text = Path(f"/proc/{worker.process.pid}/limits").read_text(encoding="ascii")  # noqa: ASYNC240
    limits = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()[1:]}

    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max file size"] == ["0", "0"]
    assert limits["Max open files"] == ["64", "64"]
    assert limits["Max data size"][0] != "unlimited"
    assert limits["Max address space"] == ["unlimited", "unlimited"]


async def test_namespaces__of_a_worker__are_not_the_daemons(worker: WorkerDriver) -> None:
    if "namespaces" not in worker.hello.hardening_applied:
        pytest.skip("this machine allows no namespaces")
    for kind in ("net", "ipc"):
        assert os.readlink(f"/proc/{worker.process.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115


def test_modules__that_a_worker_has_imported__open_no_door() -> None:
    """A worker is a fork of a process that imported exactly this."""
    script = "import sys, runnerd.worker.zygote; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    modules = result.stdout.split()

    assert "wasmtime" in modules
    assert [module for module in modules if module.startswith(FORBIDDEN_MODULES)] == []


async def test_modules__of_a_running_worker__are_those_of_the_zygote(tmp_path: Path) -> None:
    """Asked of a worker itself, after it has run a call: a zygote of the test's own answers through a host call's arguments."""
    script = tmp_path / "asking_zygote.py"
    script.write_text(
        "import sys\n"
        "from runnerd.engine import host_functions\n"
        "from runnerd.worker import zygote\n"
        "def ask(call, function, values):\n"
        "    return call.port.call(function, [','.join(sys.modules)], timeout_seconds=10)\n"
        "host_functions._ask = ask\n"
        "host_functions.host_function.__globals__['_ask'] = ask\n"
        "sys.exit(zygote.main(sys.argv[1:]))\n",
        encoding="utf-8",
    )
    zygote = await Zygote.start(command=[sys.executable, "-I", str(script)])
    async with WorkerDriver(await zygote.fork_worker(WorkerConfig())) as worker:
        await worker.call("echo", body=b"x" * 100_000)
        ended = await worker.call("get_setting", answer=lambda _f, _a: "x")
    await zygote.aclose()

    ((_, (modules,)),) = ended.host_calls
    assert "wasmtime" in str(modules).split(",")
    assert [module for module in str(modules).split(",") if module.startswith(FORBIDDEN_MODULES)] == []


def test_start_frame__fields__hold_no_user_secret_or_setting() -> None:
    """What a worker is told about a call. Users, settings and secrets come only as replies to granted host calls (T4, T22)."""
    assert {field.name for field in worker_pb2.Start.DESCRIPTOR.fields} == {
        "component",
        "request_id",
        "tenant_id",
        "extension_id",
        "install_id",
        "version_id",
        "method",
        "url",
        "headers",
        "has_body",
        "wall_time_us",
        "fuel",
        "memory_bytes",
        "response_bytes",
        "host_calls",
        "capabilities",
        "log_lines",
        "log_bytes",
        "cpu_time_us",
    }


async def test_body__that_is_itself_a_start_message__changes_nothing(worker: WorkerDriver) -> None:
    """Bytes of a caller are never read as a message: a body that spells other limits and another tenant stays a body (T22)."""
    forged = worker_pb2.Start(tenant_id="victim", fuel=1 << 60, wall_time_us=1 << 40, capabilities=["secrets.get"]).SerializeToString()
    echoed = await worker.call("echo", body=forged)
    context = await worker.call("get_context", body=forged)

    assert echoed.body == forged
    assert context.body == b"tenant-1"
    assert (await worker.call("spin_forever", body=forged, fuel=10_000)).limit == "fuel"
