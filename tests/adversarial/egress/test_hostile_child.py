"""The process that reads what strangers send is killed, or taken over: what it could still do, and what that costs others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry.domain.limits import MIB
from runnerd.children import keeper
from runnerd.egress import client as client_module
from runnerd.egress.client import ClientSettings, EgressClient
from tests.fakes.egress_kit import LOOPBACK, EgressKit, egress, ok, raw_server, read_request, until

ROOT = Path(__file__).resolve().parents[3]
SECRET = "postgresql://runner:hunter2@db/extrunner"


@pytest.fixture
async def kit() -> AsyncIterator[EgressKit]:
    async with egress(allowed_ranges=LOOPBACK) as made:
        yield made


async def test_child__killed_while_requests_run__they_end_and_the_next_ones_are_served(kit: EgressKit) -> None:
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await read_request(reader)
        asked += 1
        await reader.read()

    async with raw_server(serve) as stuck, raw_server(ok()) as server:
        waiting = [asyncio.ensure_future(kit.failure(f"http://127.0.0.1:{stuck.port}/")) for _ in range(3)]
        await until(lambda: asked == 3)
        pid = kit.client.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await asyncio.gather(*waiting) == ["unavailable"] * 3
        # The next one waits for the new process.
        assert await kit.failure(f"http://127.0.0.1:{server.port}/") in {"answered 200", "unavailable"}
        await until(lambda: kit.client.pid not in {None, pid})
        assert (await kit.get(f"http://127.0.0.1:{server.port}/")).status == 200
    assert "extrunner_egress_restarts_total 1.0" in kit.metrics.render().decode()


async def test_child__stopped__is_noticed_and_replaced(kit: EgressKit, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = kit.client.pid
    assert pid is not None
    monkeypatch.setattr(client_module, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(client_module, "PING_SECONDS", 0.2)
    os.kill(pid, signal.SIGSTOP)
    # The first look comes after the old pause.
    await until(lambda: kit.client.pid not in {None, pid}, seconds=60)


HOSTILE = """
import json, socket, struct, sys, time
control = socket.socket(fileno=int(sys.argv[1]))
def send(kind, call=0, payload=b"", length=None):
    control.sendall(struct.pack(">IBQ", len(payload) if length is None else length, kind, call) + payload)
def tell(kind, call, **document):
    send(kind, call, json.dumps(document).encode())
READY, PONG, HEAD, CHUNK, END = 1, 3, 7, 8, 9
tell(READY, 0, hardening={})
control.recv(65536)
"""


@pytest.mark.parametrize(
    "code",
    [
        "send(CHUNK, 1, length=0xffffffff)",
        "send(99)",
        "send(4, 1, b'{}')",
        "control.sendall(b'x' * 60_000)",
        "tell(READY, 0)",
        "tell(END, 7)",
        "tell(END, 1)",
        "send(CHUNK, 1, b'early')",
        "send(HEAD, 1, b'no json')",
        "send(HEAD, 1, b'[' * 60_000)",
        "tell(HEAD, 1, status=200)",
        "tell(HEAD, 1, status='200', headers=[])",
        "tell(HEAD, 1, status=99, headers=[])",
        "tell(HEAD, 1, status=200, headers=[['a', 'b\\r\\nc: d']])",
        "tell(HEAD, 1, status=200, headers=[['a', '\\ud800']])",
        "tell(HEAD, 1, status=200, headers=[['A', 'b']])",
        "tell(HEAD, 1, status=200, headers=[['transfer-encoding', 'chunked']])",
        "tell(HEAD, 1, status=200, headers=[['a', 'b']] * 257)",
        "tell(HEAD, 1, status=200, headers=[]); tell(HEAD, 1, status=200, headers=[])",
        "tell(HEAD, 1, status=200, headers=[]); [send(CHUNK, 1, b'x' * 65_536) for _ in range(20)]",
        "tell(HEAD, 1, status=200, headers=[]); send(CHUNK, 1)",
        "tell(HEAD, 1, status=200, headers=[]); send(CHUNK, 1, b'x'); send(CHUNK, 1, b'x')",
        "send(PONG)",
        "control.close()",
    ],
)
async def test_frames__that_no_child_of_ours_sends__end_the_child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    program = f"{textwrap.dedent(HOSTILE)}\ntry:\n    {code}\nexcept OSError:\n    pass\ntime.sleep(600)"
    monkeypatch.setattr(EgressClient, "_command", lambda self, control: [sys.executable, "-I", "-S", "-c", program, str(control)])
    monkeypatch.setattr(keeper, "STOP_GRACE_SECONDS", 0.1)
    async with egress() as kit:
        pid = kit.client.pid
        assert await kit.failure("http://a.example/") == "unavailable"
        await until(lambda: kit.client.pid != pid)
        assert not kit.client._held


@pytest.mark.parametrize("failure", ["'{}'", "[]", "{}", "1", "'" + "x" * 3_000 + "'"])
async def test_child__says_another_failure_than_there_is__is_an_internal_one(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    program = f"{textwrap.dedent(HOSTILE)}\ntell(END, 1, failure={failure}, detail=[1])\ntime.sleep(600)"
    monkeypatch.setattr(EgressClient, "_command", lambda self, control: [sys.executable, "-I", "-S", "-c", program, str(control)])
    monkeypatch.setattr(keeper, "STOP_GRACE_SECONDS", 0.1)
    async with egress() as kit:
        assert await kit.failure("http://a.example/") == "internal"


async def test_child__names_its_hardening_as_it_likes__is_kept_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    program = textwrap.dedent(HOSTILE).replace("hardening={}", "hardening={'event': True, 'self': 1}") + "\ntime.sleep(600)"
    monkeypatch.setattr(EgressClient, "_command", lambda self, control: [sys.executable, "-I", "-S", "-c", program, str(control)])
    monkeypatch.setattr(keeper, "STOP_GRACE_SECONDS", 0.1)
    async with egress() as kit:
        assert kit.client.hardening == {"event": True, "self": False}


async def test_child__goes_on_about_a_call_that_ended__is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"{textwrap.dedent(HOSTILE)}\ntell(END, 1, failure='dns')\ntell(END, 1, failure='dns')\ntime.sleep(600)"
    monkeypatch.setattr(EgressClient, "_command", lambda self, control: [sys.executable, "-I", "-S", "-c", program, str(control)])
    monkeypatch.setattr(keeper, "STOP_GRACE_SECONDS", 0.1)
    async with egress() as kit:
        pid = kit.client.pid
        assert await kit.failure("http://a.example/") == "dns"
        await until(lambda: kit.client.pid != pid)


async def test_child__says_nothing_of_what_is_given_up__is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"{textwrap.dedent(HOSTILE)}\nwhile control.recv(65536):\n    pass"
    monkeypatch.setattr(EgressClient, "_command", lambda self, control: [sys.executable, "-I", "-S", "-c", program, str(control)])
    monkeypatch.setattr(keeper, "STOP_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(client_module, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(client_module, "MOST_GIVEN_UP", 8)
    async with egress() as kit:
        pid = kit.client.pid
        for _ in range(9):
            await kit.failure("http://a.example/", seconds=0.0)
        await until(lambda: kit.client.pid != pid)


async def test_requests__that_are_cancelled__leave_nothing_behind(kit: EgressKit) -> None:
    asked = 0

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await read_request(reader)
        asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n" + b"x" * 200_000)
        await reader.read()

    pid, child = kit.client.pid, kit.client._keeper.child
    assert child is not None
    async with raw_server(stuck) as server, raw_server(ok()) as other:
        url = f"http://127.0.0.1:{server.port}/"
        asking = [asyncio.ensure_future(kit.get(url, install_id=f"i{number % 4}")) for number in range(20)]
        await until(lambda: asked == 20)
        # And some before they have begun.
        asking += [asyncio.ensure_future(kit.get(url)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        await until(lambda: not child.given_up)
        assert (await kit.get(f"http://127.0.0.1:{other.port}/")).status == 200
        assert (kit.client.pid, child.calls, dict(kit.client._held)) == (pid, {}, {})


async def test_child__does_not_read__what_is_sent_to_it_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"{textwrap.dedent(HOSTILE)}\ntime.sleep(600)"
    monkeypatch.setattr(EgressClient, "_command", lambda self, control: [sys.executable, "-I", "-S", "-c", program, str(control)])
    monkeypatch.setattr(keeper, "STOP_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(client_module, "GRACE_SECONDS", 0.0)
    body = b"x" * MIB
    async with egress(settings=ClientSettings(buffered_bytes=4 * MIB)) as kit:
        ends = [await kit.failure("http://a.example/", body=body, seconds=0.0) for _ in range(20)]
        child = kit.client._keeper.child
        assert child is not None
        assert ends[0] == "timeout"
        assert ends[-1] == "unavailable"
        assert child.channel.writer.transport.get_write_buffer_size() < 6 * MIB
        assert not kit.client._held


async def test_request__longer_than_the_child_takes__is_refused_and_the_child_lives(kit: EgressKit) -> None:
    pid = kit.client.pid
    async with raw_server(ok()) as server:
        url = f"http://127.0.0.1:{server.port}/"
        assert await kit.failure(url, headers=(("x-long", "v" * 300_000),)) == "internal"
        assert (await kit.get(url)).status == 200
    assert kit.client.pid == pid


async def test_child__has_no_environment_and_no_other_descriptor(kit: EgressKit) -> None:
    assert kit.client.pid is not None
    look_into(Path(f"/proc/{kit.client.pid}"))
    assert {step for step, holds in kit.client.hardening.items() if holds} >= {"environment", "descriptors", "no_new_privs", "seccomp"}


def look_into(process: Path) -> None:
    assert SECRET not in (process / "cmdline").read_text()
    # Not dumpable: only root may look, and it sees nothing.
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            (process / "environ").read_bytes()
        return
    assert (process / "environ").read_bytes() == b""
    links = {str(link.readlink()) for link in (process / "fd").iterdir()}
    assert {link.partition(":")[0] for link in links} <= {"socket", "pipe", "anon_inode", "/dev/null"}


PROBE = """
    import ctypes, json, os, signal, socket, sys
    sys.path.insert(0, sys.argv[1])
    from runnerd.egress.child import harden_child
    if sys.argv[5] == "without landlock":
        from runnerd.worker import kernel
        def landlock_version():
            raise OSError(38, "no landlock")
        kernel.landlock_version = landlock_version
    harden_child(require=True, ports={int(sys.argv[4])})
    libc = ctypes.CDLL(None, use_errno=True)
    other = ("127.0.0.1", int(sys.argv[6]))
    def refused(step):
        try:
            result = step()
        except OSError:
            return True
        return result == -1
    def bound(kind):
        made = socket.socket(socket.AF_INET, kind)
        made.bind(("127.0.0.1", 0))
    def reached():
        with socket.create_connection(("127.0.0.1", int(sys.argv[4]))):
            pass
    print(json.dumps({
        "open a key": refused(lambda: open(sys.argv[2])),
        "write a file": refused(lambda: open(sys.argv[2] + ".new", "w")),
        "list a folder": refused(lambda: os.listdir("/")),
        "the database's socket": refused(lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[3])),
        "a UNIX socket at all": refused(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
        "a pair of them": refused(lambda: socket.socketpair()),
        "packets": refused(lambda: libc.socket(17, 3, 0)),
        "raw IP": refused(lambda: libc.socket(2, 3, 1)),
        "netlink": refused(lambda: libc.socket(16, 3, 0)),
        "vsock": refused(lambda: libc.socket(40, 1, 0)),
        "another protocol": refused(lambda: libc.socket(2, 1, 262)),
        "bind tcp": refused(lambda: bound(socket.SOCK_STREAM)),
        "bind udp": refused(lambda: bound(socket.SOCK_DGRAM)),
        "listen": refused(lambda: socket.socket().listen()),
        "fork": refused(os.fork),
        "exec": refused(lambda: os.execv("/bin/true", ["true"])),
        "signal the parent": refused(lambda: os.kill(os.getppid(), signal.SIGTERM)),
        "trace the parent": refused(lambda: libc.ptrace(16, os.getppid(), 0, 0)),
        "memory of the parent": refused(lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY)),
        "new namespace": refused(lambda: libc.unshare(0x10000000)),
        "connect tcp (its work)": not refused(reached),
        "another port, where landlock is": sys.argv[5] == "without landlock" or refused(lambda: socket.create_connection(other)),
        "another port by fast open": refused(lambda: socket.socket().sendto(b"x", 0x20000000, other)),
        "another port by fast open in a message": refused(lambda: socket.socket().sendmsg([b"x"], [], 0x20000000, other)),
    }))
"""


@pytest.mark.parametrize("landlock", ["with landlock", "without landlock"])
def test_hardened_child__connects_and_does_nothing_else(tmp_path: Path, landlock: str) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET)
    with (
        socket.socket(socket.AF_UNIX) as database,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        path = str(tmp_path / "s.PGSQL")
        database.bind(path)
        database.listen()
        Path(path).chmod(0o777)
        arguments = [str(ROOT), str(key), path, str(server.getsockname()[1]), landlock, str(other.getsockname()[1])]
        probe = [sys.executable, "-B", "-c", textwrap.dedent(PROBE), *arguments]
        done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [name for name, is_refused in json.loads(done.stdout).items() if not is_refused] == []


async def test_port_that_the_operator_did_not_allow__is_the_kernel_s_to_refuse() -> None:
    # As if a mistake in the filters had let the address and the port through: the request goes straight to the process.
    async with raw_server(ok()) as allowed, raw_server(ok()) as database, egress(allowed_ranges=LOOPBACK, ports=(allowed.port,)) as kit:
        assert (await kit.get(f"http://127.0.0.1:{allowed.port}/")).status == 200
        assert await kit.failure(f"http://127.0.0.1:{database.port}/") == "connect"
        # Names are still looked up: their servers' ports are allowed as well.
        assert await kit.failure("http://absent.example/") == "dns"
