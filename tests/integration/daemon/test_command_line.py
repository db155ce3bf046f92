"""`runnerd` as a program: its help, its exit codes, and that it spills no secret."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runnerd.config import RunnerdSettings
from tests.fakes.daemon_settings import SECRET, smallest_environment


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "url").write_text(SECRET + "\n")
    return smallest_environment(tmp_path)


def runnerd(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runnerd", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_command_line__prints_the_config_without_secrets(environment: dict[str, str]) -> None:
    changed = {**environment, "RUNNERD_DATABASE__URL": SECRET, "ENV": "development"}
    del changed["RUNNERD_DATABASE__URL_FILE"]
    printed = runnerd(changed, "--print-config")
    assert printed.returncode == 0, printed.stderr
    config: dict[str, Any] = json.loads(printed.stdout)
    assert config["environment"] == "development"
    assert "hunter2" not in printed.stdout
    assert set(config) == set(RunnerdSettings.model_fields)


def test_command_line__says_what_is_wrong_and_ends_with_2(environment: dict[str, str]) -> None:
    ended = runnerd({**environment, "RUNNERD_WORKERS__SLOTS": "many"})
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "workers.slots" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_command_line__cannot_start_ends_with_1_and_one_json_line(environment: dict[str, str]) -> None:
    ended = runnerd({**environment, "RUNNERD_OPS__ADDRESS": "127.0.0.1:0", "RUNNERD_DATABASE__POOL_SIZE": "1"})
    assert ended.returncode == 1
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert lines[-1]["event"] == "cannot_start"
    assert "hunter2" not in ended.stderr


def test_help__names_the_exit_codes() -> None:
    helped = runnerd({}, "--help")
    assert helped.returncode == 0
    assert "exit status" in helped.stdout
    assert runnerd({}, "--version").stdout.startswith("runnerd ")
