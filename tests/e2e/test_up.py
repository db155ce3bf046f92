"""`extctl up`: it stops when it is told to, leaves nothing behind however it ends, and lives beside another one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import EXTCTL, Running, are_gone, eventually, family_of, processes_of, run, start, stop

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("demo")]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Running]:
    running = start([EXTCTL, "up"], tmp_path / "a state" / "below folders")
    try:
        yield running
    finally:
        stop(running)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal__stops_everything_and_ends_well(machine: Running, number: signal.Signals) -> None:
    assert len(processes_of(machine.state)) > 3
    family = family_of(machine.process.pid)
    if number is signal.SIGINT:
        assert machine.interrupt() == 0
    else:
        machine.process.terminate()
        assert machine.process.wait(60) == 0
    assert are_gone(family)
    assert processes_of(machine.state) == []
    assert not (machine.state / "machine.json").exists()


def test_impatience__second_ctrl_c__leaves_nothing_either(machine: Running) -> None:
    family = family_of(machine.process.pid)
    os.killpg(machine.process.pid, signal.SIGINT)
    os.killpg(machine.process.pid, signal.SIGINT)
    assert machine.process.wait(60) == 0
    assert are_gone(family)
    assert processes_of(machine.state) == []


def test_kill__the_supervisor__takes_everything_with_it_and_the_next_start_works(machine: Running) -> None:
    family = family_of(machine.process.pid)
    machine.process.kill()
    machine.process.wait()
    assert eventually(lambda: are_gone(family))
    assert eventually(lambda: processes_of(machine.state) == []), processes_of(machine.state)
    again = start([EXTCTL, "up"], machine.state)
    try:
        assert again.interrupt() == 0
    finally:
        stop(again)


@pytest.mark.parametrize("service", ["runnerd", "ext-gateway"])
def test_service_dies__everything_stops_and_says_so(machine: Running, service: str) -> None:
    victims = [
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdecimal() and _is_main_process(process, service, machine.state)
    ]
    assert len(victims) == 1
    family = family_of(machine.process.pid)
    os.kill(victims[0], signal.SIGKILL)
    assert machine.process.wait(60) == 3
    assert eventually(lambda: are_gone(family))
    assert eventually(lambda: processes_of(machine.state) == [])
    assert any(f"{service} ended" in line for line in machine.lines)


def test_db__upgrade_and_current__of_a_running_machine(machine: Running) -> None:
    current = machine.extctl("db", "current", "--json")
    assert current.returncode == 0, current.stderr
    assert current.last_json["revision"] == current.last_json["head"]
    assert machine.extctl("db", "upgrade").returncode == 0


def test_two_machines__one_beside_the_other__have_ports_of_their_own(machine: Running, tmp_path: Path) -> None:
    other = start([EXTCTL, "up"], tmp_path / "other")
    try:
        addresses = [json.loads((running.state / "machine.json").read_text()) for running in (machine, other)]
        assert not set(map(str, addresses[0].values())) & set(map(str, addresses[1].values()))
        # The keys of one are nothing to the other.
        token = run([EXTCTL, "token", "user", "--tenant", "acme", "--role", "ext:manage", "--state", machine.state]).stdout.strip()
        (tmp_path / "token").write_text(token)
        refused = run(
            [EXTCTL, "installs", "list", "--tenant", "acme", "--token-file", tmp_path / "token", "--state", other.state, "--json"]
        )
        assert (refused.returncode, refused.last_json["error"]["reason"]) == (1, "UNAUTHENTICATED")
        assert other.interrupt() == 0
        assert machine.process.poll() is None
    finally:
        stop(other)


def test_state_that_is_no_folder__is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = run([EXTCTL, "up", "--state", tmp_path / "file"])
    assert result.returncode == 2
    assert (tmp_path / "file").read_text() == "mine"


def _is_main_process(process: Path, service: str, state: Path) -> bool:
    try:
        arguments = (process / "cmdline").read_bytes().split(b"\0")
        environment = (process / "environ").read_bytes()
    except OSError:
        return False
    return str(state).encode() in environment and any(part.endswith(b"/bin/" + service.encode()) for part in arguments)
