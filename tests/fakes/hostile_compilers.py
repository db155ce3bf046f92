"""Programs put in the place of the compiler child. Each gets the two descriptors as its last arguments, as the real one does."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from tests.fakes.loading import FINGERPRINT

_PRELUDE = f"""
import ctypes, hashlib, json, mmap, os, signal, sys, time
source, target = map(int, sys.argv[-2:])
assert os.read(0, 1) == b"\\n"
wasm = os.pread(source, os.fstat(source).st_size, 0)

def report(**changes):
    facts = dict(verdict="compiled", message="", component_sha256=hashlib.sha256(wasm).hexdigest(), engine_fingerprint="{FINGERPRINT}",
                 bridge_applied=False, memories=1, artifact_bytes=os.fstat(target).st_size)
    os.write(1, json.dumps(facts | changes).encode())

def artifact(data=b"\\x7fELF" + wasm):
    os.write(target, data)
"""


def children() -> set[int]:
    """Return the processes that this one has started and not reaped, dead ones included."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid():
            found.add(int(path.parent.name))
    return found


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def memory_files(name: str) -> int:
    """Count the memory files of that name that this process has open."""
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        # The folder's own descriptor is gone again.
        with contextlib.suppress(FileNotFoundError):
            count += str(path.readlink()).startswith(f"/memfd:{name} ")
    return count


HONEST = "artifact(); report()"


def program(folder: Path, body: str, name: str = "compiler.py") -> tuple[str, ...]:
    """Write a program and return its command line."""
    path = folder / name
    path.write_text(_PRELUDE + body)
    return (sys.executable, "-I", "-B", str(path))
