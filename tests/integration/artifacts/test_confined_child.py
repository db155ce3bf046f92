"""What the compiler child can still do once it is confined: a probe runs in its place, with its profile."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from registry.domain.errors import RefusalError
from runnerd.artifacts.compiler import Compiler, CompilerSettings
from runnerd.artifacts.sealed import seal_bytes
from tests.fakes.loading import compile_sealed

_PROBE = """
import codecs, ctypes, json, os, signal, socket, subprocess, sys, threading
codecs.lookup("ascii")  # As everything else, loaded before the process loses sight of its own library.
from runnerd.artifacts.compile_report import CompileReport, CompileVerdict
from runnerd.worker.hardening import harden
source, target = map(int, sys.argv[-2:])
os.read(0, 1)
harden("compiler", require=True)
libc = ctypes.CDLL(None, use_errno=True)

def attempt(action):
    try:
        action()
    except Exception as error:
        return type(error).__name__
    return "done"

def fork():
    if os.fork() == 0:
        os._exit(0)

def thread():
    started = threading.Thread(target=lambda: None)
    started.start()
    started.join()

def trace():
    if libc.ptrace(16, os.getppid(), None, None) != 0:
        raise OSError(ctypes.get_errno())

found = {
    "read": attempt(lambda: open("/etc/passwd").read()),
    "write": attempt(lambda: open("/tmp/planted", "w")),
    "memory of the daemon": attempt(lambda: open(f"/proc/{os.getppid()}/mem", "rb")),
    "environment of the daemon": attempt(lambda: open(f"/proc/{os.getppid()}/environ", "rb")),
    "trace the daemon": attempt(trace),
    "signal the daemon": attempt(lambda: os.kill(os.getppid(), signal.SIGUSR1)),
    "socket": attempt(lambda: socket.socket(socket.AF_INET)),
    "unix socket": attempt(lambda: socket.socket(socket.AF_UNIX)),
    "datagram": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    "fork": attempt(fork),
    "program": attempt(lambda: os.execv("/bin/true", ["true"])),
    "session": attempt(os.setsid),
    "thread": attempt(thread),
    "output": attempt(lambda: os.pwrite(target, b"x", 0)),
    "input": attempt(lambda: os.pwrite(source, b"x", 0)),
    "environment": sorted(os.environ),
}
words = ";".join(f"{name}={result}" for name, result in found.items())
os.write(1, CompileReport(verdict=CompileVerdict.REJECTED, message=words).to_json())
os._exit(3)
"""


@pytest.fixture
async def findings(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "probe.py"
    path.write_text(_PROBE)
    compiler = Compiler(CompilerSettings(), engine_fingerprint="0" * 64, command=(sys.executable, "-I", str(path)))
    with pytest.raises(RefusalError) as caught:
        await compile_sealed(compiler, seal_bytes("component", b"x"))
    words = caught.value.public_detail.removeprefix("The component was rejected: ").removesuffix(".")
    return dict(word.split("=", 1) for word in words.split(";"))


async def test_it_reaches_nothing_but_its_two_files(findings: dict[str, str]) -> None:
    forbidden = {name: result for name, result in findings.items() if name not in {"thread", "output", "environment"}}
    assert len(forbidden) == 13
    assert {name for name, result in forbidden.items() if result == "done"} == set()
    assert (findings["thread"], findings["output"], findings["environment"]) == ("done", "done", "[]")


async def test_a_child_that_cannot_be_confined_compiles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "unconfined.py"
    program = """
import os, sys
from runnerd.worker import hardening
def fails(*_):
    raise OSError("no such step here")
hardening.kernel.install_filter = fails
from runnerd.artifacts import compiler_child
os._exit(compiler_child.main(sys.argv[1:]))
"""
    path.write_text(program)
    compiler = Compiler(CompilerSettings(), engine_fingerprint="0" * 64, command=(sys.executable, "-I", str(path), "--require-hardening"))
    with pytest.raises(RefusalError) as caught:
        await compile_sealed(compiler, seal_bytes("component", b"x"))
    assert "could not be compiled" in caught.value.public_detail
    assert json.dumps(caught.value.metadata) == '{"stage": "compile"}'
