"""The child taken over by whoever sent it requests: what it holds, and what the daemon still does for it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from runnerd.assets import catalogue, lookup, supervisor
from runnerd.assets.supervisor import AssetsServer
from runnerd.children import keeper
from runnerd.children.process import LINES_BURST, LINES_PER_SECOND, MAX_LINE_CHARACTERS
from tests.fakes.assets_server import serving, until, url
from tests.fakes.interface_files import EXTENSION, HASH, InterfaceShelf

SECRET = "hunter2-of-the-daemon"


@pytest.fixture
def shelf(tmp_path: Path) -> InterfaceShelf:
    shelf = InterfaceShelf(tmp_path / "ui")
    shelf.put({"index.html": b"<p>", "app.js": b"1"})
    return shelf


@pytest.fixture
async def running(
    shelf: InterfaceShelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[tuple[AssetsServer, httpx.AsyncClient]]:
    monkeypatch.setenv("RUNNERD_DATABASE__PASSWORD", SECRET)
    key = tmp_path / "artifacts.ed25519"
    key.write_text(SECRET)
    with key.open() as held:
        os.set_inheritable(held.fileno(), True)
        async with serving(shelf) as pair:
            yield pair


def facts_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def belongings_of(pid: int) -> tuple[bytes, list[str]]:
    """Return the environment of a process and the files it has open, standard error aside."""
    links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.name != "2"]
    return Path(f"/proc/{pid}/environ").read_bytes(), [link for link in links if link.startswith("/") and not link.startswith("/dev/")]


async def test_child__holds_no_environment_and_no_key(running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf) -> None:
    server, client = running
    assert (await client.get(url("app.js"))).status_code == 200
    assert server.pid is not None
    command = await asyncio.to_thread(Path(f"/proc/{server.pid}/cmdline").read_bytes)
    assert SECRET.encode() not in command
    assert str(shelf.root).encode() not in command
    try:
        environment, held = await asyncio.to_thread(belongings_of, server.pid)
    except PermissionError:
        # The child is not dumpable, so even its own user may not look.
        assert os.geteuid() != 0
        return
    assert environment.strip(b"\0") == b""
    assert held == [str(shelf.place_of("app.js"))]


async def test_child__is_hardened(running: tuple[AssetsServer, httpx.AsyncClient]) -> None:
    server, _ = running
    assert server.pid is not None
    facts = facts_of(server.pid)
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"
    assert facts["Threads"] == "1"
    assert server.hardening
    assert server.hardening["seccomp"] is True


async def test_random_hashes__cost_the_registry_a_bounded_rate_and_starve_nobody(
    running: tuple[AssetsServer, httpx.AsyncClient], shelf: InterfaceShelf
) -> None:
    _, client = running
    assert (await client.get(url("app.js"))).status_code == 200
    started = asyncio.get_running_loop().time()
    statuses: set[int] = set()
    for start in range(0, 2_000, 20):
        paths = [url("app.js", content_hash=f"sha256:{number:064x}") for number in range(start, start + 20)]
        statuses |= {reply.status_code for reply in await asyncio.gather(*(client.get(path) for path in paths))}
        assert (await client.get(url("app.js"))).status_code == 200
    seconds = asyncio.get_running_loop().time() - started
    assert statuses <= {404, 503}
    asked = [names for names in shelf.resolved if names != (EXTENSION, HASH)]
    assert len(asked) <= lookup.COLD_ASKS_BURST + lookup.COLD_ASKS_PER_SECOND * (seconds + 1)


HOSTILE = """
    import json, os, socket, sys, time
    control = socket.socket(fileno=int(sys.argv[1]))
    def send(**frame):
        control.send(json.dumps(frame).encode())
    def ask(**frame):
        send(id=1, **frame)
        data, descriptors, _, _ = socket.recv_fds(control, 65536, 4)
        return json.loads(data), [os.read(descriptor, 1000).decode() for descriptor in descriptors]
    def tell(value):
        send(op="corrupt", extension="", hash="", path=json.dumps(value))
    send(op="ready", hardening={})
"""


async def takeover(shelf: InterfaceShelf, monkeypatch: pytest.MonkeyPatch, code: str) -> AssetsServer:
    """Start a server whose child runs `code` instead."""
    program = textwrap.dedent(HOSTILE) + textwrap.dedent(code)
    monkeypatch.setattr(
        AssetsServer, "_command", lambda self, control, listen: [sys.executable, "-I", "-c", program, str(control), str(listen)]
    )
    monkeypatch.setattr(keeper, "STOP_GRACE_SECONDS", 0.2)
    server = AssetsServer(host="127.0.0.1", port=0, root=shelf.root, resolve=shelf.resolve, require_hardening=True)
    await server.start()
    return server


@pytest.mark.parametrize(
    "code",
    [
        "control.send(b'not json')",
        "control.send(b'[]')",
        "control.send(b'[' * 8000)",
        "control.send(b'x' * 60000)",
        "control.send(json.dumps({'op': 'x' * 9000}).encode())",
        "socket.send_fds(control, [b'{}'], [0, 1, 2])",
        "[send(op='corrupt', extension='', hash='', path='') for _ in range(20_000)]",
        "control.close()",
    ],
)
async def test_channel__broken_by_the_child__ends_the_child(shelf: InterfaceShelf, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    server = await takeover(shelf, monkeypatch, f"try:\n    {code}\nexcept OSError:\n    pass\ntime.sleep(600)")
    try:
        await until(lambda: server.restarts >= 1)
    finally:
        await server.aclose()


async def test_standard_error__flooded_by_the_child__reaches_the_log_at_a_bounded_rate(
    shelf: InterfaceShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(supervisor, "_say", said.append)
    code = """
        for number in range(20_000):
            sys.stderr.write("x" * 1_000 + chr(10))
        tell("done")
        time.sleep(600)
    """
    server = await takeover(shelf, monkeypatch, code)
    started = asyncio.get_running_loop().time()
    try:
        await until(lambda: server.corrupt_files == 1)
        seconds = asyncio.get_running_loop().time() - started
    finally:
        await server.aclose()
    assert 0 < len(said) <= LINES_BURST + LINES_PER_SECOND * (seconds + 1)
    assert max(map(len, said)) <= MAX_LINE_CHARACTERS


async def test_channel__child_asks_for_what_is_not_served__gets_nothing(shelf: InterfaceShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = shelf.put({"hidden.js": b"other tenant's"}, content_hash="sha256:" + "0" * 64)
    del shelf.served[EXTENSION, "sha256:" + "0" * 64]
    digest = hidden.files["hidden.js"].sha256
    secret = shelf.root.parent / "secret"
    secret.write_text(SECRET)
    asks = [
        {"op": "open", "extension": EXTENSION, "hash": HASH, "path": path}
        for path in ("hidden.js", digest, f"{digest[:2]}/{digest}", "../secret", str(secret), "", "a\0b", None, 5, ["app.js"])
    ]
    asks += [{"op": "open", "extension": EXTENSION, "hash": "sha256:" + "0" * 64, "path": "hidden.js"}]
    asks += [{"op": "open", "extension": "../..", "hash": HASH, "path": "app.js"}, {"op": "open"}, {"op": "eval"}, {}]
    told: list[str] = []
    monkeypatch.setattr("runnerd.assets.supervisor._log.error", lambda event, **fields: told.append(fields.get("path", "")))
    server = await takeover(shelf, monkeypatch, f"for frame in {asks!r}:\n    tell(ask(**frame))\ntime.sleep(600)")
    try:
        await until(lambda: len(told) == len(asks))
    finally:
        await server.aclose()
    answers = [json.loads(text) for text in told]
    assert all("reason" in answer and not contents for answer, contents in answers)
    assert not [text for text in told if SECRET in text or "other tenant" in text]


async def test_channel__child_asks_about_ever_new_versions__registry_is_spared(
    shelf: InterfaceShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        for number in range(3_000):
            ask(op="resolve", extension="com.example.notes", hash=f"sha256:{number:064x}", known=True)
        tell("done")
        time.sleep(600)
    """
    server = await takeover(shelf, monkeypatch, code)
    started = asyncio.get_running_loop().time()
    try:
        await until(lambda: server.corrupt_files == 1 or server.restarts >= 1, seconds=60)
        seconds = asyncio.get_running_loop().time() - started
    finally:
        await server.aclose()
    assert len(shelf.resolved) <= catalogue.COLD_RESOLVES_BURST + catalogue.COLD_RESOLVES_PER_SECOND * (seconds + 1)


PROBE = """
    import json, os, signal, socket, sys
    sys.path.insert(0, sys.argv[1])
    from runnerd.assets.child import harden_child
    import fcntl, ctypes, subprocess, threading
    if sys.argv[3] == "without landlock":
        from runnerd.worker import kernel
        def landlock_version():
            raise OSError(38, "no landlock")
        kernel.landlock_version = landlock_version
    steps = harden_child(require=True)
    assert steps["landlock"] is (sys.argv[3] == "with landlock") or sys.argv[3] == "with landlock"
    libc = ctypes.CDLL(None, use_errno=True)
    def refused(step):
        try:
            result = step()
        except OSError:
            return True
        return result == -1
    print(json.dumps({
        "open a key": refused(lambda: open(sys.argv[2])),
        "write a file": refused(lambda: open(sys.argv[2] + ".new", "w")),
        "list a folder": refused(lambda: os.listdir("/")),
        "tcp": refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
        "udp": refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "unix": refused(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)),
        "fork": refused(os.fork),
        "exec": refused(lambda: os.execv("/bin/true", ["true"])),
        "signal the parent": refused(lambda: os.kill(os.getppid(), signal.SIGTERM)),
        "trace the parent": refused(lambda: libc.ptrace(16, os.getppid(), 0, 0)),
        "memory of the parent": refused(lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY)),
        "new namespace": refused(lambda: libc.unshare(0x10000000)),
    }))
"""


@pytest.mark.parametrize("kernel", ["with landlock", "without landlock"])
def test_hardened_child__opens_no_path_no_socket_and_no_process(tmp_path: Path, kernel: str) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET)
    probe = [sys.executable, "-B", "-c", textwrap.dedent(PROBE), str(Path(__file__).resolve().parents[3]), str(key), kernel]
    done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [name for name, is_refused in results.items() if not is_refused] == []
