"""Guests that call any host function they are told to, built by both toolchains against both worlds; and their calls and answers, as JSON.

`alga:extension/runner` is built from its own text alone, as it reaches the authors of existing extensions.
"""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from registry.cli.building import COMPONENT, DEFAULT_WORLD, MANIFEST, Language, Toolchain, build, find_wit
from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.shapes import F64, Bool, Data, Enum, ListOf, Option, Record, Shape, Text, TupleOf, Unsigned
from scripts.demonstration.samples import CACHE, TOOLCHAIN, exclusive, javascript_is_available
from tests.fakes.archives import archive, compress, file

ASSETS: Final = Path(__file__).resolve().parents[1] / "assets"
_EXACT_BITS: Final = 53
"""Of an integer that JavaScript holds as a number; wider ones are a BigInt."""
_UNIT_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeGuest:
    """One toolchain and one world."""

    language: Language
    additions: bool
    """Whether its world has what `extrunner:host` adds."""

    @property
    def name(self) -> str:
        """Name of the extension."""
        return f"com.example.probe-{self.language}-{'extension' if self.additions else 'runner'}"

    def imports(self, function: HostFunction) -> bool:
        """Tell whether its world has the function."""
        return self.additions or not function.interface.startswith("extrunner:host/")


JAVASCRIPT: Final = ProbeGuest(language=Language.JAVASCRIPT, additions=True)
PYTHON: Final = ProbeGuest(language=Language.PYTHON, additions=True)
GUESTS: Final = (JAVASCRIPT, PYTHON, replace(JAVASCRIPT, additions=False), replace(PYTHON, additions=False))


def build_probe(guest: ProbeGuest, manifest: Mapping[str, Any], work: Path) -> tuple[bytes, Path]:
    """Return the bundle of a guest and its component; built once into .cache. Skips the test where its toolchain is not installed.

    The bundle is packed with little effort: `extctl pack` takes longer than all the probes.

    Args:
        guest: which.
        manifest: without name, publisher, version and runtime.
        work: folder to write into.
    """
    if guest.language is Language.JAVASCRIPT and not javascript_is_available():
        pytest.skip("no JavaScript toolchain: install Node.js and run scripts/build_guest_toolchain")
    project, folder = (work / f"{guest.name}{suffix}" for suffix in ("", ".built"))
    write_project(guest, manifest, project)
    wit, world = find_wit(), DEFAULT_WORLD
    if not guest.additions:
        wit, world = work / "wit", "alga:extension/runner"
        wit.mkdir(exist_ok=True)
        shutil.copy(find_wit() / "alga-extension.wit", wit)
    tools = Toolchain(wit=wit, world=world, node_modules=TOOLCHAIN, cache=CACHE / "guests")
    # One at a time for each guest: whoever waits finds the result in the cache.
    with exclusive(CACHE / f"{guest.name}.lock"):
        build(project, folder, tools)
    component = folder / COMPONENT
    members = [file("dist/"), file(str(COMPONENT), component.read_bytes()), file(MANIFEST, (folder / MANIFEST).read_bytes())]
    return compress(archive(*members), level=1), component


def write_project(guest: ProbeGuest, manifest: Mapping[str, Any], project: Path) -> None:
    """Write a project that `extctl build` builds."""
    ending = {Language.JAVASCRIPT: "js", Language.PYTHON: "py"}[guest.language]
    sources = ASSETS / f"{guest.language}_guests" / "probe"
    (project / "src").mkdir(parents=True)
    for name in ("app", "runner") if guest.additions else ("app",):
        shutil.copy(sources / f"{name}.{ending}", project / "src")
    shutil.copy(sources / f"{'extension' if guest.additions else 'runner'}.{ending}", project / "src" / f"interfaces.{ending}")
    runtime = {Language.JAVASCRIPT: "wasm-js@1", Language.PYTHON: "wasm-component@1"}[guest.language]
    head = {"name": guest.name, "publisher": "example", "version": "1.0.0", "runtime": runtime}
    (project / MANIFEST).write_text(json.dumps(head | dict(manifest)), "utf-8")


# --- what guests are told ----------------------------------------------------------------------------------------------------------------


def write_call(function: HostFunction, arguments: Sequence[object], *, times: int = 1) -> dict[str, object]:
    """Write a call of `function` for a guest.

    Args:
        function: from the catalog.
        arguments: of its shapes, as `runnerd.capabilities.shapes` says.
        times: how often it is called; the guest tells of the last.
    """
    written = [_write(shape, value) for (_, shape), value in zip(function.params, arguments, strict=True)]
    return {"interface": function.interface, "function": function.name, "arguments": written, "times": times}


def _write(shape: Shape, value: Any) -> object:
    match shape:
        case Option(inner=inner):
            return None if value is None else _write(inner, value)
        case ListOf(item=item):
            return [_write(item, one) for one in value]
        case Data():
            return _write_bytes(value)
        case Unsigned(bits=bits) if bits > _EXACT_BITS:
            return {"u64": str(value)}
        case F64() if not math.isfinite(value):
            return {"float": {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")}
        case Enum(name=name):
            return {"enum": name, "case": value}
        case Record(name=name):
            fields = zip(shape.keys, shape.fields, strict=True)
            return {"record": name, "fields": {key: _write(field, value[key]) for key, (_, field) in fields}}
        case _:
            return value


def _write_bytes(value: bytes) -> object:
    """Write bytes, by what they repeat where they are many: an engine that interprets is slow at reading them singly."""
    unit = value[:_UNIT_BYTES]
    if value != (unit * (len(value) // max(len(unit), 1) + 1))[: len(value)]:
        unit = value
    return {"bytes": base64.b64encode(unit).decode(), "size": len(value)}


# --- what guests tell ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a guest says of one call: a value of the function's shape, the case of its error, or what the toolchain threw instead."""

    value: Any = None
    error: str | None = None
    threw: str | None = None


def read_answer(guest: ProbeGuest, function: HostFunction, told: Mapping[str, Any]) -> Answer:
    """Read what a guest told of a call. The value must be of exactly the shape, and as wide numbers as its language has for it.

    Raises:
        AssertionError: it is not.
    """
    if "ok" not in told:
        return Answer(error=told.get("error"), threw=told.get("threw"))
    if function.result is None:
        assert told["ok"] is None, f"{function.qualified_name} answers nothing and told {told['ok']!r}"
        return Answer()
    return Answer(value=_read(function.result, told["ok"], big=guest.language is Language.JAVASCRIPT))


def _read(shape: Shape, told: Any, *, big: bool) -> object:  # noqa: C901 - one case for each shape
    match shape:
        case Option(inner=inner):
            return None if told is None else _read(inner, told, big=big)
        case ListOf(item=item):
            return [_read(item, one, big=big) for one in _kind(told, list)]
        case TupleOf(items=items):
            return tuple(_read(item, one, big=big) for item, one in zip(items, _kind(told, list), strict=True))
        case Record():
            assert _kind(told, dict).keys() == set(shape.keys), f"{shape.name} came as {told!r}"
            return {key: _read(field, told[key], big=big) for key, (_, field) in zip(shape.keys, shape.fields, strict=True)}
        case Data():
            return base64.b64decode(told["bytes"], validate=True)
        case Unsigned(bits=bits):
            return int(_kind(told["u64"], str)) if big and bits > _EXACT_BITS else _kind(told, int)
        case F64():
            return float(told["float"]) if isinstance(told, dict) else float(_kind(told, int | float))
        case Bool():
            return _kind(told, bool)
        case Text():
            return _kind(told, str)
        case Enum():
            assert told in shape.cases, f"{shape.name} has no case {told!r}"
            return told


def _kind(told: Any, kind: Any) -> Any:
    assert isinstance(told, kind), f"expected {kind}, found {told!r}"
    assert kind is bool or not isinstance(told, bool), f"expected {kind}, found {told!r}"
    return told
