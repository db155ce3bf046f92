"""The environment of each service of a development machine: their settings, and nothing of the environment of who starts them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Final

from registry.cli.state import SERVICE_ISSUER, USER_ISSUER, Addresses, MachineState
from registry.migrations.roles import ADMIN, RUNNER

_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the services listen, all on one address."""

    gateway: int
    assets: int
    operations: int
    grpc: int

    def addresses(self, host: str) -> Addresses:
        """Return the same as addresses."""
        return Addresses(
            gateway=f"http://{host}:{self.gateway}",
            assets=f"http://{host}:{self.assets}",
            operations=f"http://{host}:{self.operations}",
            grpc=f"{host}:{self.grpc}",
        )


def gateway_environment(state: MachineState, ports: Ports, host: str) -> dict[str, str]:
    """Return the environment of `ext-gateway`: both faces in one process, which development alone allows."""
    return _base() | {
        "GATEWAY_SERVE": "all",
        "GATEWAY_HOST": host,
        "GATEWAY_PORT": str(ports.gateway),
        "GATEWAY_PUBLIC_ORIGIN": f"http://{host}:{ports.gateway}",
        "GATEWAY_LIMITS__DRAIN_SECONDS": "5",
        "GATEWAY_RUNNER__TARGET": f"{host}:{ports.grpc}",
        "GATEWAY_SERVICE__PRIVATE_JWK_FILE": str(state.keys / "services.private.jwk"),
        "GATEWAY_SERVICE__ISSUER": SERVICE_ISSUER,
        "GATEWAY_USERS__JWKS_FILE": str(state.keys / "users.jwks.json"),
        "GATEWAY_USERS__ISSUER": USER_ISSUER,
        "GATEWAY_ADMIN__DATABASE_URL_FILE": str(state.database_url_file(ADMIN)),
        "GATEWAY_ADMIN__BUNDLE_STORE": str(state.bundles),
        "GATEWAY_ADMIN__TRUST_DOMAINS_FILE": str(state.trust_domains),
        "GATEWAY_ADMIN__WORK_DIR": str(state.work),
        "GATEWAY_ADMIN__SECRETS__LOCAL__PUBLIC_KEY_FILE": str(state.keys / "secrets.public.jwk"),
    }


def runnerd_environment(state: MachineState, ports: Ports, host: str) -> dict[str, str]:
    """Return the environment of `runnerd`."""
    return _base() | {
        "RUNNERD_GRPC__ADDRESS": f"{host}:{ports.grpc}",
        "RUNNERD_OPS__ADDRESS": f"{host}:{ports.operations}",
        "RUNNERD_ASSETS__ADDRESS": f"{host}:{ports.assets}",
        "RUNNERD_ASSETS__FRAME_ANCESTORS": json.dumps([f"http://{host}:{ports.gateway}"]),
        "RUNNERD_DATABASE__URL_FILE": str(state.database_url_file(RUNNER)),
        "RUNNERD_SERVICES__JWKS_FILE": str(state.keys / "services.jwks.json"),
        "RUNNERD_SERVICES__ISSUER": SERVICE_ISSUER,
        "RUNNERD_USERS__JWKS_FILE": str(state.keys / "users.jwks.json"),
        "RUNNERD_USERS__ISSUER": USER_ISSUER,
        "RUNNERD_TRUST_DOMAINS_FILE": str(state.trust_domains),
        "RUNNERD_OBJECT_STORE_URL": state.bundles.as_uri(),
        "RUNNERD_CACHE_DIR": str(state.cache),
        "RUNNERD_SECRETS__LOCAL__PRIVATE_KEY_FILES": json.dumps([str(state.keys / "secrets.private.jwk")]),
        "RUNNERD_ARTIFACTS__KEY_FILE": str(state.keys / "artifacts.ed25519"),
        "RUNNERD_DRAIN_SECONDS": "5",
    }


def sweeper_environment() -> dict[str, str]:
    """Return the environment of `extctl db sweep`, which is told everything by its arguments."""
    return _base()


def _base() -> dict[str, str]:
    # SECURITY: nothing else of the caller's environment (tokens, proxies, preloaded libraries) reaches a service.
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {"ENV": "development"}
