"""A whole installation on one machine, for development: keys, database, daemon, gateway. Used by `extctl up`, the demo and the tests.

Everything it makes is labelled non-production and lies in one state folder. Starting goes up the chain of who needs whom, stopping
goes down it; children are in sessions of their own and end with their supervisor, however that ends (N40).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from registry import migrations
from registry.cli.child import ChildProcess, answers
from registry.cli.output import UnavailableError, UsageError
from registry.cli.service_settings import Ports, gateway_environment, runnerd_environment, sweeper_environment
from registry.cli.state import Addresses, MachineState, write_private_json
from registry.domain.errors import Reason, RefusalError
from registry.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
from registry.key_sets import KeySetError, generate_key_set
from registry.migrations.roles import MAINTENANCE, OWNER
from registry.provenance.dev_trust import DevTrust
from registry.provenance.verifier import TrustConfigurationError
from registry.secrets.local_keys import SecretKeyError, generate_key_pair

HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 15.0
_SWEEP_SECONDS: Final = "60"
_OTHER_PORTS: Final = range(20_000, 32_000)
_PORT_PROBES: Final = 50
_PORT_ATTEMPTS: Final = 5
_PORT_TAKEN: Final = ("address already in use", "failed to bind")
_DEFAULT_PORTS: Final = Ports(gateway=8080, assets=8081, operations=9464, grpc=50051)

Say = Callable[[str], None]


@dataclass(slots=True)
class _Running:
    """What has been started so far, in order."""

    lock: int | None = None
    database: EmbeddedPostgres | None = None
    runnerd: ChildProcess | None = None
    gateway: ChildProcess | None = None
    sweeper: ChildProcess | None = None
    reserved: list[socket.socket] = field(default_factory=list)


class DevelopmentMachine:
    """One installation in one state folder. Start it from the main thread: the kernel ends its children with the thread that started them.

    Args:
        state: where everything lies; made if missing.
        say: told what happens, a line at a time.
        durable: False trades safety against a crash of the machine for speed. For tests.
        settings: further settings of `runnerd`, by name of the variable.
    """

    def __init__(self, state: MachineState, *, say: Say, durable: bool = True, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        self._state = state
        self._say = say
        self._durable = durable
        self._settings = settings
        self._running = _Running()
        self._addresses: Addresses | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def state(self) -> MachineState:
        """Where everything lies."""
        return self._state

    @property
    def addresses(self) -> Addresses:
        """Where the services listen.

        Raises:
            UnavailableError: the machine is not started.
        """
        if self._addresses is None:
            message = "The machine is not started."
            raise UnavailableError(message)
        return self._addresses

    @property
    def runnerd_pid(self) -> int:
        """Process id of the daemon, whose workers are below it.

        Raises:
            UnavailableError: it does not run.
        """
        if self._running.runnerd is None:
            message = "The daemon is not started."
            raise UnavailableError(message)
        return self._running.runnerd.pid

    def start(self) -> None:
        """Make what is missing and start everything; return when it can be called.

        Raises:
            RefusalError: ALREADY_EXISTS: a machine runs on this state.
            UnavailableError: a part did not start; nothing is left running.
            UsageError: the state folder cannot be used.
        """
        # SECURITY: development keys and a database of this machine are no installation for anybody's data.
        if os.environ.get("ENV") == "production":
            message = "A development machine does not start where ENV=production."
            raise UsageError(message)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Go on if all services run.

        Raises:
            UnavailableError: one has ended; the end of its log is in the message.
        """
        for child in (self._running.runnerd, self._running.gateway, self._running.sweeper):
            if child is not None:
                child.check()

    def stop_runnerd(self) -> None:
        """Stop the daemon alone. Calls are refused until it is started again."""
        if self._running.runnerd is not None:
            self._running.runnerd.stop(timeout_seconds=_STOP_SECONDS)
            self._running.runnerd = None

    def start_runnerd(self) -> None:
        """Start the daemon alone, on the addresses that it had. The gateway finds it by itself; see `wait_for_gateway`.

        Raises:
            UnavailableError: it did not start.
        """
        ports = _ports_of(self.addresses)
        self._running.runnerd = self._spawn_runnerd(ports)
        self._wait_for_runnerd(ports)

    def wait_for_gateway(self) -> None:
        """Wait until the gateway can be called.

        Raises:
            UnavailableError: it ended or takes too long.
        """
        self._wait_for_gateway(_ports_of(self.addresses))

    def stop(self) -> None:
        """Stop everything, callers before those they call. May be repeated."""
        running = self._running
        if running.lock is not None:
            self._state.machine.unlink(missing_ok=True)
        self._stop_services()
        if running.sweeper is not None:
            running.sweeper.stop(timeout_seconds=_STOP_SECONDS)
            running.sweeper = None
        if running.database is not None:
            running.database.stop()
            running.database = None
        _release(running.reserved)
        if running.lock is not None:
            os.close(running.lock)
            running.lock = None
        self._addresses = None

    def _start(self) -> None:
        started = time.monotonic()
        state = self._state
        try:
            state.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SECURITY: whoever owns the folder can swap what lies in it, whatever its mode.
            if state.root.stat().st_uid != os.geteuid():
                message = f"The state folder {state.root} belongs to somebody else; name another --state."
                raise UsageError(message)
            # SECURITY: private keys and passwords lie below; nobody else looks in, however the folder came to be.
            state.root.chmod(0o700)
            self._running.lock = _take_lock(state)
            for folder in (state.keys, state.bundles, state.cache, state.logs, state.secrets, state.work):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            message = f"The state folder {state.root} cannot be used: {exc.strerror}."
            raise UsageError(message) from exc
        _make_keys(state)
        self._say("keys and trust domain of this machine are there (NON-PRODUCTION)")
        self._start_database()
        self._addresses = self._start_services().addresses(HOST)
        # Nobody waits for it: what has expired is not there for anybody, swept or not.
        sweep = ("db", "sweep", "--every", _SWEEP_SECONDS, "--url-file", str(state.database_url_file(MAINTENANCE)))
        self._running.sweeper = self._spawn("extctl", sweeper_environment(), *sweep, log="sweep")
        write_private_json(state.machine, asdict(self._addresses) | {"pid": os.getpid()})
        self._say(f"everything runs after {time.monotonic() - started:.1f} s")

    def _start_services(self) -> Ports:
        """Start the daemon and the gateway and return their ports; on others where somebody took one after it was found free."""
        for attempt in range(_PORT_ATTEMPTS):
            ports = _choose_ports(usual=attempt == 0, reserved=self._running.reserved)
            # At the same time: starting is mostly importing, and there are two of them.
            self._running.runnerd = runnerd = self._spawn_runnerd(ports)
            self._running.gateway = gateway = self._spawn("ext-gateway", gateway_environment(self._state, ports, HOST))
            try:
                self._wait_for_runnerd(ports)
                self._wait_for_gateway(ports)
            except UnavailableError:
                said = (runnerd.tail() + gateway.tail()).lower()
                if attempt + 1 == _PORT_ATTEMPTS or not any(words in said for words in _PORT_TAKEN):
                    raise
                self._stop_services()
                _release(self._running.reserved)
            else:
                return ports
        message = f"No free port on {HOST}."
        raise UnavailableError(message)

    def _stop_services(self) -> None:
        if self._running.gateway is not None:
            self._running.gateway.stop(timeout_seconds=_STOP_SECONDS)
            self._running.gateway = None
        self.stop_runnerd()

    def _start_database(self) -> None:
        began = time.monotonic()
        try:
            self._running.database = database = EmbeddedPostgres(self._state.postgres, durable=self._durable)
            database.start()
            urls = database.urls()
            revision = migrations.upgrade(urls[OWNER])
        except (EmbeddedPostgresError, migrations.MigrationError) as exc:
            message = f"The database did not start: {exc}"
            raise UnavailableError(message) from exc
        write_private_json(self._state.database, urls)
        for role, url in urls.items():
            _write_private(self._state.database_url_file(role), url)
        self._say(f"PostgreSQL is ready, schema at {revision} ({time.monotonic() - began:.1f} s)")

    def _wait_for_runnerd(self, ports: Ports) -> None:
        self._wait(self._running.runnerd, "serving", f"http://{HOST}:{ports.operations}/readyz")

    def _wait_for_gateway(self, ports: Ports) -> None:
        self._wait(self._running.gateway, "listening", f"http://{HOST}:{ports.gateway}/readyz")

    def _spawn_runnerd(self, ports: Ports) -> ChildProcess:
        return self._spawn("runnerd", {**runnerd_environment(self._state, ports, HOST), **self._settings})

    def _spawn(self, program: str, environment: Mapping[str, str], *arguments: str, log: str | None = None) -> ChildProcess:
        file = self._state.logs / f"{log or program}.log"
        return ChildProcess(log or program, [find_program(program), *arguments], environment=environment, log=file)

    def _wait(self, child: ChildProcess | None, event: str, url: str) -> None:
        if child is None:
            message = "The machine is not started."
            raise UnavailableError(message)

        def is_ready() -> bool:
            # Whichever service is waited for: where the other has ended, the wait would be in vain.
            self.check()
            # Its own word first: on a port that two machines wanted, the other one's service would answer.
            return child.has_logged(event) and answers(url)

        child.wait_until(is_ready, timeout_seconds=_START_SECONDS)
        self._say(f"{child.name} is ready at {url.removesuffix('/readyz')}")


def find_program(name: str) -> str:
    """Return the path of a console script of this installation.

    Raises:
        UnavailableError: it is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        message = f"{name} is not installed beside this extctl."
        raise UnavailableError(message)
    return found


def _make_keys(state: MachineState) -> None:
    try:
        DevTrust.init(state.trust)
        for name in ("users", "services"):
            if not (state.keys / f"{name}.jwks.json").exists():
                # A private key without its public half is left over from an attempt that was interrupted.
                (state.keys / f"{name}.private.jwk").unlink(missing_ok=True)
                generate_key_set(state.keys, name)
        if not (state.keys / "secrets.public.jwk").exists():
            (state.keys / "secrets.private.jwk").unlink(missing_ok=True)
            generate_key_pair(state.keys, development=True)
    except (TrustConfigurationError, KeySetError, SecretKeyError) as exc:
        message = f"The keys of this machine cannot be used: {exc}"
        raise UsageError(message) from exc


def _take_lock(state: MachineState) -> int:
    descriptor = os.open(state.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        addresses = None
        with suppress(UnavailableError, UsageError):
            addresses = state.addresses()
        where = f"; its gateway is {addresses.gateway}" if addresses else ""
        message = f"A machine already runs on {state.root}{where}. Stop that one, or name another --state."
        raise RefusalError(Reason.ALREADY_EXISTS, message) from exc
    return descriptor


def _release(reserved: list[socket.socket]) -> None:
    for reservation in reserved:
        reservation.close()
    reserved.clear()


def _choose_ports(*, usual: bool = True, reserved: list[socket.socket] | None = None) -> Ports:
    """Return the usual ports where they are free and wanted, others where they are not.

    Args:
        usual: try the usual ones first.
        reserved: takes what keeps other machines of this host away from these ports, also while a service is started anew.
    """
    held = [] if reserved is None else reserved

    def choose(first: int) -> int:
        # Not what the kernel would choose: it hands the same ports to outgoing connections while a service is started anew.
        others = (secrets.choice(_OTHER_PORTS) for _ in range(_PORT_PROBES))
        for candidate in (first, *others) if usual else others:
            # A name that only one process can have and that ends with it; nothing listens there.
            reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                reservation.bind(f"\0extrunner-port-{candidate}")
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((HOST, candidate))
            except OSError:
                reservation.close()
            else:
                held.append(reservation)
                return candidate
        message = f"No free port on {HOST}."
        raise UnavailableError(message)

    defaults = _DEFAULT_PORTS
    try:
        return Ports(
            gateway=choose(defaults.gateway),
            assets=choose(defaults.assets),
            operations=choose(defaults.operations),
            grpc=choose(defaults.grpc),
        )
    finally:
        if reserved is None:
            _release(held)


def _ports_of(addresses: Addresses) -> Ports:
    def port(address: str) -> int:
        return int(address.rpartition(":")[2])

    return Ports(
        gateway=port(addresses.gateway), assets=port(addresses.assets), operations=port(addresses.operations), grpc=port(addresses.grpc)
    )


def _write_private(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text + "\n")
