"""House rules that no stock linter knows. Prints each violation with its place and exits 1 where there is one.

SQL is written only in repositories and migrations; `proto` is never a Python package; nothing tracked names a machine's path.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_SQL_ROOMS = ("registry/repositories/", "registry/migrations/", "registry/models/", "registry/database.py", "registry/embedded_postgres.py")
_SQL_CALLS = {"select", "insert", "update", "delete", "text"}
_SQL_MODULES = ("sqlalchemy", "sqlmodel", "psycopg")
_MACHINE_PATH = re.compile(r"(?<![A-Za-z0-9_.$/-])/(?:root|work)/")


def _tracked(pattern: str) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern], cwd=_ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    return [_ROOT / name for name in names if name and (_ROOT / name).is_file()]


def _sql_outside_repositories() -> Iterator[str]:
    for path in _tracked("*.py"):
        name = path.relative_to(_ROOT).as_posix()
        if not name.startswith(("registry/", "runnerd/", "gateway/")) or name.startswith(_SQL_ROOMS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _SQL_MODULES:
                named = {alias.name for alias in node.names} & _SQL_CALLS
                if named:
                    yield f"{name}:{node.lineno}: SQL ({', '.join(sorted(named))}) outside registry/repositories"


def _proto_is_no_package() -> Iterator[str]:
    if (_ROOT / "proto/__init__.py").exists():
        yield "proto/__init__.py: would shadow the `proto` of proto-plus"


def _left_over_files() -> Iterator[str]:
    for path in _tracked("*"):
        if path.suffix in {".orig", ".rej", ".bak"}:
            yield f"{path.relative_to(_ROOT)}: left over by a tool"


def _machine_paths() -> Iterator[str]:
    for path in _tracked("*"):
        if path.suffix in {".png", ".wasm"} or path == Path(__file__):
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if _MACHINE_PATH.search(line):
                yield f"{path.relative_to(_ROOT)}:{number}: names a path of some machine"


def main() -> int:
    """Run every rule."""
    problems = [*_sql_outside_repositories(), *_proto_is_no_package(), *_left_over_files(), *_machine_paths()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
