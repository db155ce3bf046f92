"""What the Dockerfiles say. That their steps work is shown by `scripts/check_images`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts import image_replay, strip_environment
from scripts.image_replay import Image, Instruction, Replay, ReplayError

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILES = sorted(image_replay.IMAGES)


def stages(dockerfile: str) -> list[list[Instruction]]:
    return image_replay.parse((ROOT / dockerfile).read_text())


def only(stage: list[Instruction], name: str) -> str:
    found = [instruction.text for instruction in stage if instruction.name == name]
    assert len(found) == 1, (name, found)
    return found[0]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfile__has_two_stages_on_one_base_that_a_build_argument_names(dockerfile: str) -> None:
    preamble, build, final = stages(dockerfile)
    assert [instruction.name for instruction in preamble] == ["ARG"]
    assert preamble[0].text.startswith("BASE_IMAGE=")
    assert only(build, "FROM") == "${BASE_IMAGE} AS build"
    assert only(final, "FROM") == "${BASE_IMAGE} AS final"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfile__runs_as_a_numeric_user_that_is_not_root(dockerfile: str) -> None:
    user = only(stages(dockerfile)[2], "USER")
    assert re.fullmatch(r"[1-9][0-9]{3,}:[1-9][0-9]{3,}", user)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfile__no_step_goes_through_a_shell(dockerfile: str) -> None:
    steps = [i for stage in stages(dockerfile) for i in stage if i.name in {"RUN", "ENTRYPOINT", "CMD", "SHELL"}]
    assert steps
    assert all(instruction.exec_form for instruction in steps)
    health = only(stages(dockerfile)[2], "HEALTHCHECK").partition("CMD ")[2]
    assert json.loads(health)[0] == "/opt/extrunner/bin/python"


@pytest.mark.parametrize(("dockerfile", "program"), [("Dockerfile.runner", "runnerd"), ("Dockerfile.gateway", "ext-gateway")])
def test_dockerfile__starts_its_program_and_stops_it_gently(dockerfile: str, program: str) -> None:
    final = stages(dockerfile)[2]
    assert json.loads(only(final, "ENTRYPOINT")) == [f"/opt/extrunner/bin/{program}"]
    assert only(final, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfile__what_comes_from_an_index__comes_by_hash_and_without_building(dockerfile: str) -> None:
    installs = [i.exec_form for i in stages(dockerfile)[1] if i.name == "RUN" and "install" in i.exec_form and "pip" in i.exec_form]
    assert len(installs) == 3
    for words in installs:
        # --no-deps: the lock is the resolution; pip must not make another one beside it.
        assert "--no-deps" in words
        assert "--no-index" in words or ("--require-hashes" in words and words[words.index("--only-binary") + 1] == ":all:")


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfile__final_stage__takes_nothing_from_the_context(dockerfile: str) -> None:
    copies = [instruction.text for instruction in stages(dockerfile)[2] if instruction.name == "COPY"]
    assert copies
    assert all(text.startswith("--from=build ") for text in copies)
    assert not any(instruction.name == "ADD" for stage in stages(dockerfile) for instruction in stage)


def test_context__holds_no_tests_keys_or_state() -> None:
    names = {path.as_posix() for path in image_replay.context_files()}
    assert {
        "pyproject.toml",
        "README.md",
        "requirements-runner.txt",
        "registry/domain/errors.py",
        "proto/gen/extrunner/__init__.py",
    } <= names
    assert not [name for name in names if name.split("/")[0] in {"tests", "docs", "examples", ".git", ".dev", ".ci", ".venv"}]
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".proto"))]
    assert "requirements-dev.txt" not in names


def test_build_lock__is_what_the_build_system_asks_for_in_the_developers_versions() -> None:
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / "requirements-build.txt").read_text(), re.MULTILINE))
    developer = (ROOT / "requirements-dev.txt").read_text()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert set(wanted) <= {f"{name}=={version}" for name, version in pins.items()}
    assert all(f"\n{name}=={version} " in f"\n{developer}" for name, version in pins.items())


@pytest.mark.parametrize(
    ("base", "unpinned", "status"),
    [
        ("python@sha256:" + "0" * 64, "0", 0),
        ("python:3.11", "0", 1),
        ("python@sha256:" + "0" * 63, "0", 1),
        ("", "0", 1),
        ("python:3.11", "1", 0),
        ("python:3.11", "true", 1),
    ],
)
def test_check_base_image__without_a_digest__stops_the_build(base: str, unpinned: str, status: int) -> None:
    environment = {"BASE_IMAGE": base, "ALLOW_UNPINNED_BASE": unpinned}
    done = subprocess.run([sys.executable, "-I", ROOT / "scripts/check_base_image.py"], env=environment, capture_output=True, check=False)
    assert done.returncode == status


def test_strip__keeps_what_runs_and_removes_the_rest(tmp_path: Path) -> None:
    for name in ("bin/python", "bin/runnerd", "bin/pip", "bin/activate", "include/x.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    packages = tmp_path / "lib/python3.11/site-packages/p"
    for name in ("tests/test_a.py", "a.py", "b.c", "b.h", "test_data/x", "test_c.py", "contest.py", "testimony.py", "data.json"):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    assert strip_environment.main([str(tmp_path), "--keep", "runnerd"]) == 0
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    prefix = "lib/python3.11/site-packages/p/"
    assert kept == ["bin/python", "bin/runnerd", *(prefix + name for name in ("a.py", "contest.py", "data.json", "testimony.py"))]


def test_strip__program_to_keep_is_missing__fails(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    assert strip_environment.main([str(tmp_path), "--keep", "runnerd"]) == 1


def test_replay__step_in_shell_form__is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="shell form"):
        Replay(tmp_path).run([Instruction("RUN", "pip install x")], {})


def test_replay__unknown_instruction__is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="cannot replay"):
        Replay(tmp_path).run([Instruction("ADD", "x y")], {})


def test_replay__file_outside_the_context__is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="dockerignore"):
        Replay(tmp_path).run([Instruction("COPY", "tests tests")], {})


def test_replay__failing_step__is_shown(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="no such step"):
        Replay(tmp_path).run([Instruction("RUN", '["python", "-c", "raise SystemExit(\'no such step\')"]')], {})


def test_inspect__package_that_is_not_locked__is_refused(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "e"], check=True)
    image = Image(programs=frozenset(), lock="requirements-build.txt", forbidden=frozenset(), modules=())
    with pytest.raises(ReplayError, match="locked but not installed"):
        image_replay.inspect(tmp_path / "e", image)
