"""Last step of an image's build stage: removes from a virtual environment what a running service never uses.

Gone are test folders, C sources and headers, activation scripts, and every program but the interpreter and the ones to keep.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

TEST_FOLDERS = frozenset({"test", "tests", "test_data"})
SOURCE_SUFFIXES = frozenset({".c", ".cc", ".cpp", ".h", ".hpp", ".pxd", ".pyx", ".pxi"})
INTERPRETERS = frozenset({"python", "python3", "python3.11"})


def strip(environment: Path, *, keep: frozenset[str]) -> None:
    """Remove what is not needed below `environment`."""
    for program in (environment / "bin").iterdir():
        if program.name not in INTERPRETERS | keep:
            program.unlink()
    shutil.rmtree(environment / "include", ignore_errors=True)
    packages = environment / "lib"
    for folder in [path for path in packages.rglob("*") if path.name in TEST_FOLDERS and path.is_dir()]:
        shutil.rmtree(folder, ignore_errors=True)
    for path in [path for path in packages.rglob("*") if _is_unneeded(path)]:
        path.unlink()


def _is_unneeded(path: Path) -> bool:
    return path.is_file() and (path.suffix in SOURCE_SUFFIXES or path.name.startswith(("test_", "conftest.")))


def main(arguments: list[str] | None = None) -> int:
    """Strip one environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path, help="the virtual environment")
    parser.add_argument("--keep", action="append", default=[], metavar="PROGRAM", help="a program to keep; may be repeated")
    options = parser.parse_args(arguments)
    missing = [name for name in options.keep if not (options.environment / "bin" / name).is_file()]
    if missing:
        print(f"not in the environment: {', '.join(missing)}", file=sys.stderr)
        return 1
    strip(options.environment, keep=frozenset(options.keep))
    return 0


if __name__ == "__main__":
    sys.exit(main())
