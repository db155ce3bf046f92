from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from gateway import config as gateway_config
from registry.cli.development import DevelopmentMachine, _choose_ports, _make_keys, _ports_of, _release, _take_lock
from registry.cli.output import UnavailableError, UsageError
from registry.cli.service_settings import Ports, gateway_environment, runnerd_environment
from registry.cli.state import MachineState, state_at, write_private_json
from registry.domain.errors import Reason, RefusalError
from runnerd import config as runnerd_config

PORTS = Ports(gateway=18080, assets=18081, operations=19464, grpc=15051)
HOST = "127.0.0.1"


@pytest.fixture
def state(tmp_path: Path) -> MachineState:
    root = tmp_path / "a state"
    root.mkdir()
    return MachineState(root)


def apply(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in list(os.environ):
        if name.startswith(("GATEWAY_", "RUNNERD_", "RUNNER_")) or name == "ENV":
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_gateway_environment__is_what_the_gateway_reads(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(monkeypatch, gateway_environment(state, PORTS, HOST))
    settings = gateway_config.load()
    assert (settings.is_production, settings.port, settings.runner.target) == (False, 18080, "127.0.0.1:15051")
    assert settings.admin is not None
    assert settings.admin.bundle_store == state.bundles


def test_runnerd_environment__is_what_the_daemon_reads(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(monkeypatch, runnerd_environment(state, PORTS, HOST))
    settings = runnerd_config.load()
    assert (settings.is_production, settings.require_hardening, settings.grpc.address) == (False, True, "127.0.0.1:15051")
    assert settings.object_store_folder == state.bundles
    assert settings.cache_dir == state.cache


@pytest.mark.parametrize("make", [gateway_environment, runnerd_environment])
def test_environment__secrets_of_the_caller__are_not_passed_on(state: MachineState, monkeypatch: pytest.MonkeyPatch, make: object) -> None:
    for name in ("EXTCTL_TOKEN", "LD_PRELOAD", "HTTPS_PROXY", "PYTHONPATH", "EXTCTL_DATABASE_URL"):
        monkeypatch.setenv(name, "leak")
    assert callable(make)
    environment = make(state, PORTS, HOST)
    assert "leak" not in environment.values()
    assert not any("://ext_" in value for value in environment.values()), "database URLs go by file"


def test_take_lock__held_by_another__is_refused_and_names_the_gateway(state: MachineState) -> None:
    first = _take_lock(state)
    try:
        write_private_json(
            state.machine,
            {
                "gateway": "http://127.0.0.1:18080",
                "assets": "http://127.0.0.1:2",
                "operations": "http://127.0.0.1:3",
                "grpc": "127.0.0.1:4",
                "pid": 1,
            },
        )
        with pytest.raises(RefusalError, match=r"http://127\.0\.0\.1:18080") as refused:
            _take_lock(state)
        assert refused.value.reason is Reason.ALREADY_EXISTS
    finally:
        os.close(first)
    os.close(_take_lock(state))


def test_take_lock__link_in_its_place__is_not_followed(state: MachineState, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    state.lock.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        _take_lock(state)


def test_start__locked_state__starts_nothing_and_takes_no_lock_away(state: MachineState) -> None:
    descriptor = _take_lock(state)
    try:
        with pytest.raises(RefusalError):
            DevelopmentMachine(state, say=lambda _line: None).start()
        assert not state.postgres.exists()
        with pytest.raises(BlockingIOError), state.lock.open() as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def test_start__production__is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENV", "production")
    with pytest.raises(UsageError, match="production"):
        DevelopmentMachine(MachineState(tmp_path / "state"), say=lambda _line: None).start()
    assert not (tmp_path / "state").exists()


def test_addresses__not_started__is_unavailable(state: MachineState) -> None:
    machine = DevelopmentMachine(state, say=lambda _line: None)
    with pytest.raises(UnavailableError):
        _ = machine.addresses
    machine.stop()


def test_make_keys__again__keeps_what_is_there_and_repairs_what_was_interrupted(state: MachineState) -> None:
    state.keys.mkdir()
    _make_keys(state)
    private = (state.keys / "users.private.jwk").read_text()
    _make_keys(state)
    assert (state.keys / "users.private.jwk").read_text() == private
    (state.keys / "users.jwks.json").unlink()
    _make_keys(state)
    assert (state.keys / "users.private.jwk").read_text() != private
    assert stat.S_IMODE((state.keys / "users.private.jwk").stat().st_mode) == 0o600


def test_choose_ports__taken_ones__are_replaced_and_all_differ() -> None:
    with socket.socket() as taken:
        try:
            taken.bind((HOST, 8080))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        ports = _choose_ports()
    numbers = [ports.gateway, ports.assets, ports.operations, ports.grpc]
    assert ports.gateway != 8080
    assert len(set(numbers)) == 4
    assert _ports_of(ports.addresses(HOST)) == ports


def test_choose_ports__of_two_machines__never_meet() -> None:
    first: list[socket.socket] = []
    second: list[socket.socket] = []
    try:
        one, other = _choose_ports(reserved=first), _choose_ports(reserved=second)
        # Nobody listens on any of them yet, as while a service is started anew.
        assert not {one.gateway, one.assets, one.operations, one.grpc} & {other.gateway, other.assets, other.operations, other.grpc}
    finally:
        _release(first)
        _release(second)
    assert first == second == []


class FakeChild:
    def __init__(self, said: str) -> None:
        self.said = said
        self.stopped = False

    def tail(self) -> str:
        return self.said

    def stop(self, *, timeout_seconds: float) -> None:
        self.stopped = True


def starting(
    state: MachineState, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> tuple[DevelopmentMachine, list[FakeChild], list[Ports]]:
    """A machine whose services say `said`, one text an attempt, and are ready when they say nothing."""
    machine, children, waited = DevelopmentMachine(state, say=lambda _line: None), [], []
    texts = iter([text for text in said for _ in range(2)])

    def spawn(_program: str, _environment: object) -> FakeChild:
        children.append(FakeChild(next(texts)))
        return children[-1]

    def wait(ports: Ports) -> None:
        waited.append(ports)
        if children[-1].said:
            raise UnavailableError(children[-1].said)

    monkeypatch.setattr(machine, "_spawn", spawn)
    monkeypatch.setattr(machine, "_wait_for_runnerd", wait)
    monkeypatch.setattr(machine, "_wait_for_gateway", lambda _ports: None)
    return machine, children, waited


@pytest.mark.parametrize("said", ["[Errno 98] Address already in use", "Failed to bind to address 127.0.0.1:50051"])
def test_start_services__port_taken_meanwhile__starts_on_others(state: MachineState, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    machine, children, waited = starting(state, monkeypatch, [said, ""])
    assert machine._start_services() == waited[1] != waited[0]
    assert all(20_000 <= port < 32_000 for port in (waited[1].gateway, waited[1].assets, waited[1].operations, waited[1].grpc))
    assert [child.stopped for child in children] == [True, True, False, False]
    machine.stop()
    assert all(child.stopped for child in children)


@pytest.mark.parametrize("said", [["no such database"], ["Address already in use"] * 5])
def test_start_services__other_failures_and_endless_ones__are_told(
    state: MachineState, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    machine, _, waited = starting(state, monkeypatch, said)
    with pytest.raises(UnavailableError, match=said[0]):
        machine._start_services()
    assert len(waited) == len(said)
    machine.stop()


@pytest.mark.parametrize("content", ["{", "[]", '{"gateway": "http://x"}', "\xff"])
def test_state__damaged_machine_file__is_told(state: MachineState, content: str) -> None:
    state.machine.write_text(content, encoding="latin-1")
    with pytest.raises((UsageError, UnavailableError), match=r"machine\.json"):
        state.addresses()


def test_state__no_machine__has_no_addresses(state: MachineState) -> None:
    assert state.addresses() is None


def test_write_private_json__is_private_and_whole(state: MachineState) -> None:
    write_private_json(state.database, {"ext_admin": "postgresql://"})
    assert stat.S_IMODE(state.database.stat().st_mode) == 0o600
    assert json.loads(state.database.read_text()) == {"ext_admin": "postgresql://"}
    assert [file.name for file in state.root.iterdir()] == ["database.json"]


def test_state_at__relative__is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert state_at(Path("x/../.dev")).root == tmp_path / ".dev"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("gateway", "https://evil.example"),
        ("gateway", "https://127.0.0.1.evil.example"),
        ("gateway", "http://127.0.0.1@evil.example/"),
        ("assets", "http://10.0.0.1:8081"),
        ("grpc", "evil.example:50051"),
        ("grpc", ""),
    ],
)
def test_addresses__of_another_machine__are_not_believed(tmp_path: Path, name: str, address: str) -> None:
    state = state_at(tmp_path)
    said = {"gateway": "http://127.0.0.1:1", "assets": "http://127.0.0.1:2", "operations": "http://127.0.0.1:3", "grpc": "127.0.0.1:4"}
    write_private_json(state.machine, said)
    found = state.addresses()
    assert found is not None
    assert found.gateway == said["gateway"]
    write_private_json(state.machine, said | {name: address})
    with pytest.raises(UsageError, match="another machine"):
        state.addresses()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_start__in_a_folder_of_somebody_else__is_refused(tmp_path: Path) -> None:
    root = tmp_path / "theirs"
    root.mkdir()
    os.chown(root, 65_534, 65_534)
    with pytest.raises(UsageError, match="belongs to somebody else"):
        DevelopmentMachine(state_at(root), say=lambda _line: None).start()
    assert list(root.iterdir()) == []
