"""The guide for authors: it names every interface, capability and error, and its snippets are what the toolchains make of the WIT."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from registry.bundles.manifest import parse_manifest
from registry.cli.building import DEFAULT_WORLD
from runnerd.capabilities.catalog import BY_NAME, FUNCTIONS, HostFunction
from tests.fakes.guests import ROOT, WIT_FILES

GUIDE = (ROOT / "docs" / "extensions.md").read_text("utf-8")
SECTIONS = {title: text for title, _, text in (part.partition("\n") for part in GUIDE.split("\n## ")[1:])}


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def section_of(interface: str) -> str:
    return next(text for text in SECTIONS.values() if f"`{interface}`" in text.partition("\n")[0])


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.qualified_name)
def test_every_function__its_interface_has_a_section_with_its_capability_and_errors(function: HostFunction) -> None:
    text = section_of(function.interface)
    assert f"`cap:{function.capability}`" in text or "always granted" in text.partition("\n")[0]
    for case in function.error.cases if function.error is not None else ():
        assert f"`{case}`" in text, case
    assert text.count("```javascript") == text.count("```python") == 1


def test_manifest__is_one() -> None:
    (document,) = snippets("json")
    assert parse_manifest(document.encode()).capabilities == ("storage.kv", "http.fetch")


def test_javascript__imports_what_there_is_and_parses(tmp_path: Path) -> None:
    for number, snippet in enumerate(snippets("javascript")):
        for names, module in re.findall(r"import \{ (.*?) \} from '(.*?)';", snippet):
            interface = module.partition("@")[0]
            assert module.endswith("@0.1.0") == interface.startswith("extrunner:host/")
            for name in names.split(", "):
                assert (interface, re.sub(r"[A-Z]", lambda letter: f"-{letter[0].lower()}", name)) in BY_NAME, (interface, name)
        (tmp_path / f"snippet_{number}.mjs").write_text(snippet, "utf-8")
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    for file in sorted(tmp_path.glob("*.mjs")):
        subprocess.run([node, "--check", str(file)], check=True, timeout=60)


def test_python__has_the_types_of_the_bindings(tmp_path: Path) -> None:
    wit = [part for path in WIT_FILES for part in ("-d", str(path))]
    tool = Path(sys.executable).parent / "componentize-py"
    bindings = tmp_path / "bindings"
    subprocess.run([str(tool), "-q", *wit, "-w", DEFAULT_WORLD.partition("@")[0], "bindings", str(bindings)], check=True, timeout=120)
    files = []
    for number, snippet in enumerate(snippets("python")):
        files.append(tmp_path / f"snippet_{number}.py")
        files[-1].write_text(snippet, "utf-8")
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--follow-imports=silent",
            "--config-file=",
            "--cache-dir",
            str(tmp_path / "cache"),
            *map(str, files),
        ],
        env={"MYPYPATH": str(bindings)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
