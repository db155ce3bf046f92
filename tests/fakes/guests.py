"""Guests for tests: small ones in WebAssembly text, one behaviour each, and real Python ones, built from source and cached.

`component(name)` assembles tests/assets/guests/<name>.wat; `compiled(name)` compiles it for the workers' engine;
`build_python_guest(folder)` builds a folder with an `app.py` against the world extrunner:host/extension.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import wasmtime

import runnerd.capabilities
from runnerd.engine.compilation import CompiledComponent, compile_component
from runnerd.engine.profile import EngineProfile, engine_fingerprint

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "tests" / "assets" / "guests"
CACHE = ROOT / ".cache" / "guests"
WIT = Path(runnerd.capabilities.__file__).parent / "wit"
WIT_FILES = (WIT / "alga-extension.wit", WIT / "extrunner-host.wit")
WORLD = "extrunner:host/extension"

_HANDLER = """
(alias core export $guest "handler" (core func $handler-core))
(func $handler (param "request" $execute-request) (result $execute-response)
  (canon lift (core func $handler-core) (memory $memory) (realloc $realloc)))
(export "handler" (func $handler))
"""


def assemble(text: str, *, lifted: bool = True) -> bytes:
    """Assemble a guest's own text into a component.

    Args:
        text: defines the core instance $guest, whose "handler" is lifted and exported.
        lifted: False where the text exports a handler itself.
    """
    return bytes(wasmtime.wat2wasm(f"(component\n{_body(text, _HANDLER if lifted else '')})"))


def body_of(name: str) -> str:
    """Return what stands in the component of a .wat guest, as text."""
    return _body((GUESTS / f"{name}.wat").read_text(encoding="utf-8"), _HANDLER)


def _body(text: str, handler: str) -> str:
    world = (GUESTS / "world.wat").read_text(encoding="utf-8")
    imports, rest = _imports_first(text)
    # A .wat guest that lifts its handler itself calls it $own.
    handler = "" if '(export "handler" (func $own))' in text else handler
    return f"{imports}\n{world}\n{rest}\n{handler}"


def _imports_first(text: str) -> tuple[str, str]:
    """Split a guest's text into its imports, with the types and aliases between them, and the rest.

    Toolchains write imports first, and the bridge wants them there. A guest that says ";; imports stay" keeps its order.
    """
    forms = _top_level_forms(text)
    last = max((index for index, form in enumerate(forms) if form.startswith("(import")), default=-1)
    if last < 0 or ";; imports stay" in text:
        return "", text
    return "\n".join(forms[: last + 1]), "\n".join(forms[last + 1 :])


def _top_level_forms(text: str) -> list[str]:
    """Return the parenthesised forms of a text, without comments."""
    forms: list[str] = []
    depth = start = 0
    for token in re.finditer(r';;[^\n]*|"(?:[^"\\]|\\.)*"|[()]', text):
        if token[0] == "(":
            start = token.start() if depth == 0 else start
            depth += 1
        elif token[0] == ")":
            depth -= 1
            if depth == 0:
                forms.append(text[start : token.end()])
    return forms


@functools.cache
def component(name: str) -> bytes:
    """Return the component of tests/assets/guests/<name>.wat."""
    return assemble((GUESTS / f"{name}.wat").read_text(encoding="utf-8"))


def guest_names() -> list[str]:
    """Return the names of all .wat guests."""
    return sorted(path.stem for path in GUESTS.glob("*.wat") if path.stem != "world")


@functools.cache
def compiled(name: str, *, bridge: bool = True) -> CompiledComponent:
    """Return the compiled form of a .wat guest, with or without the bridge around it."""
    return compile_component(component(name), EngineProfile(bridge=bridge))


def build_python_guest(source: Path) -> Path:
    """Build a Python guest and return the component's path; cached by source, world and tool.

    Args:
        source: folder with `app.py`, and what that imports.
    """
    digest = hashlib.sha256()
    for path in [*WIT_FILES, *sorted(source.rglob("*.py"))]:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    digest.update(f"python {metadata.version('componentize-py')} {WORLD}".encode())
    target = CACHE / f"{digest.hexdigest()[:32]}.wasm"
    if not target.exists():
        _in_place(target, lambda output: _componentize(source, output))
    return target


def _componentize(source: Path, output: Path) -> None:
    wit = [part for path in WIT_FILES for part in ("-d", str(path))]
    tool = Path(sys.executable).parent / "componentize-py"
    command = [str(tool), *wit, "-w", WORLD, "componentize", "-p", str(source), "app", "-o", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if result.returncode:
        message = f"componentize-py failed:\n{result.stdout}\n{result.stderr}"
        raise RuntimeError(message)


def compiled_of(wasm: Path, *, bridge: bool = True) -> CompiledComponent:
    """Return the compiled form of a component; cached by content and engine."""
    profile = EngineProfile(bridge=bridge)
    digest = hashlib.sha256(wasm.read_bytes() + engine_fingerprint(profile).encode()).hexdigest()
    target = CACHE / f"{digest[:32]}.cwasm"
    facts = target.with_suffix(".json")
    if not facts.exists():
        _in_place(facts, lambda output: _compile(wasm, profile, target, output))
    return CompiledComponent(artifact=target.read_bytes(), **json.loads(facts.read_text(encoding="utf-8")))


def _compile(wasm: Path, profile: EngineProfile, artifact: Path, facts: Path) -> None:
    built = compile_component(wasm.read_bytes(), profile)
    artifact.write_bytes(built.artifact)
    facts.write_text(json.dumps({"memories": built.memories, "bridged": built.bridged}), encoding="utf-8")


def _in_place(target: Path, build: Callable[[Path], object]) -> None:
    """Build beside the target and rename, so that nobody sees half a file; one of several test processes builds, the others wait."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "guests.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            output = Path(folder) / target.name
            build(output)
            output.replace(target)
