"""A JavaScript guest built with every feature of its toolchain, as nobody is told to build one: what it may reach (T12, T41)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wasmtime import component as wasm_component

from registry.cli import building
from runnerd.engine import wasi
from runnerd.engine.compilation import CompiledComponent, inspect_component, unknown_imports
from runnerd.engine.invocation import LoadedComponent
from runnerd.engine.linker import interface_of
from runnerd.engine.outcomes import TrapKind, Trapped
from scripts.demonstration.samples import CACHE, TOOLCHAIN, javascript_is_available
from tests.fakes.engine_kit import GET, MIB, EngineKit, Ran, limits
from tests.fakes.guests import ROOT, compiled_of

SOURCE = ROOT / "tests" / "assets" / "javascript_guests" / "everything"
WITHOUT_ITS_OBJECT = tuple(f"[method]{resource}." for resource in ("descriptor", "directory-entry-stream"))
"""Functions of resources that no guest is given: a file, a folder."""
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("javascript guest"),
    pytest.mark.skipif(
        not javascript_is_available(), reason="no JavaScript toolchain: install Node.js and run scripts/build_guest_toolchain"
    ),
]


@pytest.fixture(scope="module")
def wasm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("javascript") / "everything"
    tools = building.Toolchain(wit=building.find_wit(), node_modules=TOOLCHAIN, cache=CACHE / "guests")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(building, "_JS_DISABLED", ())
        building.build(SOURCE, output, tools)
    return output / building.COMPONENT


@pytest.fixture(scope="module")
def compiled(wasm: Path) -> CompiledComponent:
    return compiled_of(wasm)


@pytest.fixture(scope="module")
def kit() -> EngineKit:
    return EngineKit()


@pytest.fixture(scope="module")
def guest(kit: EngineKit, compiled: CompiledComponent) -> LoadedComponent:
    return kit.load_compiled(compiled)


def get(kit: EngineKit, guest: LoadedComponent, url: str, **changes: Any) -> Ran:
    return kit.run(
        guest, replace(GET, url=url), within=limits(**{"memory_bytes": 128 * MIB, "wall_seconds": 30.0, "cpu_seconds": 30.0} | changes)
    )


def test_imports__of_all_features__are_our_own_or_act_on_nothing_or_trap(kit: EngineKit, wasm: Path, compiled: CompiledComponent) -> None:
    """Every WASI function that it imports: ours; or of a resource that no guest has; or of wasi:http, where each call is a trap."""
    code = wasm_component.Component.deserialize(kit.engine, compiled.artifact)
    left = set()
    for name, imported in code.type.imports(kit.engine).items():
        item = imported.ty
        if not name.startswith("wasi:") or not isinstance(item, wasm_component.ComponentInstanceType):
            continue
        for function, exported in item.exports(kit.engine).items():
            ours = (interface_of(name), function) in wasi.FUNCTIONS or function.startswith(WITHOUT_ITS_OBJECT)
            if isinstance(exported.ty, wasm_component.FuncType) and not ours:
                left.add(interface_of(name))

    assert left == {"wasi:http/types", "wasi:http/outgoing-handler"}
    assert {interface_of(name) for name in unknown_imports(inspect_component(wasm.read_bytes()))} == left


def test_fetch__of_the_toolchain__is_a_trap_that_names_it(kit: EngineKit, guest: LoadedComponent) -> None:
    outcome = get(kit, guest, "/fetch").outcome

    assert isinstance(outcome, Trapped)
    assert outcome.kind is TrapKind.UNKNOWN_IMPORT
    assert "wasi:http/types" in outcome.message


def test_clocks__show_tenths_of_a_millisecond_and_no_more(kit: EngineKit, guest: LoadedComponent) -> None:
    seen = json.loads(get(kit, guest, "/clocks").outcome.body)
    tenths = [reading * 10 for reading in seen["monotonic"]]

    assert len(tenths) > 5
    # The toolchain turns nanoseconds into a float of single precision.
    assert all(abs(tenth - round(tenth)) < 0.01 for tenth in tenths)
    assert len(seen["wall"]) <= len(tenths)


def test_output_and_randomness__work(kit: EngineKit, guest: LoadedComponent) -> None:
    assert get(kit, guest, "/random").outcome.body == b"16"
    assert [line.message for line in get(kit, guest, "/log").lines] == ["said"]
