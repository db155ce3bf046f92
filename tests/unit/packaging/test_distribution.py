"""The wheel that an image installs; looked at built and installed, because an editable install shows none of this."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {"runnerd", "gateway", "registry", "extrunner"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.builders.wheel import WheelBuilder; print(next(WheelBuilder({str(ROOT)!r}).build(directory={str(folder)!r})))"
    built = subprocess.run([sys.executable, "-I", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return Path(built.stdout.strip())


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel__holds_exactly_the_four_packages(names: list[str]) -> None:
    assert {name.split("/")[0] for name in names if ".dist-info" not in name.split("/")[0]} == PACKAGES


def test_wheel__holds_no_tests_scripts_or_keys(names: list[str]) -> None:
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"tests", "test", "scripts", "examples", "docs", ".dev", ".cache", "__pycache__"}
    assert not [name for name in names if name.endswith((".pem", ".key", ".jwk", ".pyc", ".env"))]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_wheel__every_package__is_importable_code_of_ours(names: list[str], package: str) -> None:
    assert f"{package}/__init__.py" in names


def test_wheel__generated_code__is_complete(names: list[str]) -> None:
    generated = {path.relative_to(ROOT / "proto/gen").as_posix() for path in (ROOT / "proto/gen").rglob("*.py")}
    assert generated
    assert generated <= set(names)


def test_wheel__every_module_of_the_tree__is_in_it(names: list[str]) -> None:
    modules = {
        path.relative_to(ROOT).as_posix() for package in ("runnerd", "gateway", "registry") for path in (ROOT / package).rglob("*.py")
    }
    assert modules <= set(names)


def test_wheel_installed__owns_all_four_names_alone(wheel: Path, tmp_path: Path) -> None:
    # N28, N38: a second distribution that ships `registry` would overwrite ours without a word.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import sys; sys.path[:] = [{str(tmp_path)!r}] + [p for p in sys.path if 'site-packages' not in p];"
        "import importlib.metadata, json; print(json.dumps(importlib.metadata.packages_distributions()))"
    )
    shown = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    owners = json.loads(shown.stdout)
    assert {name: owners.get(name) for name in PACKAGES} == {name: ["extrunner"] for name in PACKAGES}


def test_wheel__programs__are_the_three(wheel: Path, names: list[str]) -> None:
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(entry_points).decode().split("\n")
    assert {line.split(" ")[0] for line in lines if "=" in line} == {"runnerd", "ext-gateway", "extctl"}


def test_wheel__is_marked_never_to_be_uploaded(wheel: Path, names: list[str]) -> None:
    metadata = next(name for name in names if name.endswith("METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        assert b"Classifier: Private :: Do Not Upload" in archive.read(metadata)


def test_proto__is_no_python_package() -> None:
    assert not (ROOT / "proto/__init__.py").exists()
    assert not (ROOT / "proto/gen/__init__.py").exists()


def test_proto__proto_plus__is_found_before_our_folder() -> None:
    # Google's clients import it, and our folder of the same name lies where a developer starts Python.
    code = "import proto, pathlib; print(issubclass(proto.Message, object), pathlib.Path(proto.__file__).parent)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("True ")
    assert str(ROOT / "proto") not in found.stdout


@pytest.mark.parametrize("entry", ["runnerd.__main__", "gateway.__main__", "runnerd.egress.__main__", "runnerd.assets.__main__"])
def test_service__being_imported__starts_no_program(entry: str) -> None:
    code = f"""
import sys
started = []
events = {{"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}}
sys.addaudithook(lambda event, arguments: started.append(str(arguments)) if event in events else None)
import {entry}
print(started)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "[]"
