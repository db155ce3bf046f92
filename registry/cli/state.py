"""The state folder of a development machine: where everything of `extctl up` lies, and how the other verbs find it.

Private keys of the machine are in it: the folder is 0700, key files are 0600. Nothing of it exists in production.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from registry.cli.output import UnavailableError, UsageError
from registry.private_files import replace_private_file

DEFAULT_STATE: Final = Path(".dev")
USER_ISSUER: Final = "https://users.dev.invalid"
SERVICE_ISSUER: Final = "https://services.dev.invalid"
_MAX_JSON_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the services of a machine listen."""

    gateway: str
    """http://host:port"""
    assets: str
    """http://host:port"""
    operations: str
    """http://host:port: metrics and readiness of the daemon"""
    grpc: str
    """host:port"""


@dataclass(frozen=True, slots=True)
class MachineState:
    """The paths of a state folder.

    Args:
        root: the folder; absolute.
    """

    root: Path

    @property
    def trust(self) -> Path:
        """Folder of the development trust domain."""
        return self.root / "trust"

    @property
    def trust_domains(self) -> Path:
        """File that lists the trust domains."""
        return self.trust / "trust_domains.json"

    @property
    def keys(self) -> Path:
        """Folder of the token and artifact keys."""
        return self.root / "keys"

    @property
    def postgres(self) -> Path:
        """Folder of the embedded database."""
        return self.root / "postgres"

    @property
    def bundles(self) -> Path:
        """Folder of the object store."""
        return self.root / "bundles"

    @property
    def cache(self) -> Path:
        """Folder of compiled artifacts and unpacked interfaces."""
        return self.root / "cache"

    @property
    def logs(self) -> Path:
        """Folder of what the services say."""
        return self.root / "logs"

    @property
    def work(self) -> Path:
        """Folder of bundles while they are checked."""
        return self.root / "work"

    @property
    def secrets(self) -> Path:
        """Folder of one file with the database URL of each role."""
        return self.root / "secrets"

    @property
    def database(self) -> Path:
        """File with the URL of each database role, 0600."""
        return self.root / "database.json"

    @property
    def machine(self) -> Path:
        """File with the addresses of a running machine; absent while none runs."""
        return self.root / "machine.json"

    @property
    def lock(self) -> Path:
        """File that a running machine keeps locked."""
        return self.root / "machine.lock"

    def addresses(self) -> Addresses | None:
        """Return where the running machine listens, None where none runs."""
        document = read_json(self.machine)
        if document is None:
            return None
        try:
            addresses = Addresses(**{name: str(document[name]) for name in ("gateway", "assets", "operations", "grpc")})
        except KeyError as exc:
            message = f"{self.machine} is incomplete; start the machine again."
            raise UnavailableError(message) from exc
        # SECURITY: the folder may be anybody's (a repository that was cloned); a token must not go where it says.
        if not all(map(_is_this_machine, (addresses.gateway, addresses.assets, addresses.operations, addresses.grpc))):
            message = f"{self.machine} names another machine, so it is no development machine's; name the gateway by --gateway."
            raise UsageError(message)
        return addresses

    def database_url_file(self, role: str) -> Path:
        """File that holds the database URL of one role."""
        return self.secrets / f"{role}.url"


def state_at(folder: Path) -> MachineState:
    """Return the state in `folder`, which need not exist."""
    return MachineState(Path(os.path.abspath(folder)))  # noqa: PTH100 - a link to the state folder stays a link


def _is_this_machine(address: str) -> bool:
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a small JSON object; None if there is no such file.

    Raises:
        UsageError: it is no such thing.
    """
    try:
        with file.open("rb") as stream:
            document = json.loads(stream.read(_MAX_JSON_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        message = f"{file} cannot be read as JSON."
        raise UsageError(message) from exc
    if not isinstance(document, dict):
        message = f"{file} is not a JSON object."
        raise UsageError(message)
    return document


def write_private_json(file: Path, document: Mapping[str, object]) -> None:
    """Write a small JSON object, whole or not at all, readable by its owner only."""
    replace_private_file(file, f"{json.dumps(document, indent=2)}\n".encode())
