"""The examples, built by the real toolchains into components that the engine of the product accepts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from registry.cli.building import Toolchain, build, find_wit
from registry.cli.output import UsageError
from runnerd.engine.inspection import inspect_component
from tests.fakes.toolchain import JAVASCRIPT, PYTHON, build_example, component_of

COMPONENT_MAGIC = b"\0asm\x0d\0\x01\0"
MANIFEST = {"name": "com.example.tool", "publisher": "example", "version": "1.0.0", "runtime": "wasm-component@1"}


@pytest.mark.parametrize("example", [PYTHON, JAVASCRIPT])
def test_example__is_built_into_a_component_and_packed(example: str, tmp_path: Path) -> None:
    sample = build_example(example, tmp_path / "a path with a space")
    component = component_of(sample)
    assert component.startswith(COMPONENT_MAGIC)
    assert b"alga:extension/storage" in component
    assert b"extrunner:host/config@0.1.0" in component
    assert sample.packed.contents.wasm is not None
    assert {file.path for file in sample.packed.contents.ui_files} == {"ui/app.js", "ui/index.html", "ui/style.css"}


@pytest.mark.parametrize("example", [PYTHON, JAVASCRIPT])
def test_example__again__comes_from_the_cache_with_the_same_hash(example: str, tmp_path: Path) -> None:
    first, second = build_example(example, tmp_path / "one"), build_example(example, tmp_path / "two")
    assert second.cached
    assert first.content_hash == second.content_hash


@pytest.mark.parametrize(("example", "has_wasi"), [(PYTHON, True), (JAVASCRIPT, False)])
def test_example__imports_the_world_and_no_http(example: str, has_wasi: bool, tmp_path: Path) -> None:
    # A JavaScript guest has neither clocks, randomness nor standard streams: what it reaches are the host's capabilities alone.
    imports = inspect_component(component_of(build_example(example, tmp_path))).imports
    others = {name for name in imports if not name.startswith(("alga:extension/", "extrunner:host/"))}
    assert {name.partition("/")[0] for name in others} == (
        {"wasi:cli", "wasi:clocks", "wasi:filesystem", "wasi:io", "wasi:random", "wasi:sockets"} if has_wasi else set()
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project" / "src").mkdir(parents=True)
    (tmp_path / "project" / "manifest.json").write_text(json.dumps(MANIFEST))
    return tmp_path / "project"


def test_build__author_s_mistake__is_told_in_the_tool_s_words_and_leaves_nothing(project: Path, tmp_path: Path) -> None:
    (project / "src" / "app.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(UsageError, match="no_such_module_anywhere"):
        build(project, tmp_path / "out", Toolchain(wit=find_wit()))
    assert not (tmp_path / "out").exists()


def test_build__secrets_of_the_environment__are_not_the_tool_s(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXTCTL_TOKEN", "a-secret-of-this-machine")
    (project / "src" / "app.py").write_text("import os\nraise RuntimeError(sorted(os.environ.items()))\n")
    with pytest.raises(UsageError) as refused:
        build(project, tmp_path / "out", Toolchain(wit=find_wit()))
    assert "RuntimeError" in str(refused.value)
    assert "a-secret-of-this-machine" not in str(refused.value)
    assert os.environ["EXTCTL_TOKEN"]


def test_build__hostile_words_of_a_tool__are_shown_safely(project: Path, tmp_path: Path) -> None:
    (project / "src" / "app.py").write_text("raise RuntimeError(chr(27) + '[2J' + chr(0x202e))\n")
    with pytest.raises(UsageError) as refused:
        build(project, tmp_path / "out", Toolchain(wit=find_wit()))
    assert not {"\x1b", "\u202e"} & set(str(refused.value))
