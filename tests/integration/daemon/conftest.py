"""A dispatcher over real, hardened worker processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from registry.database import Database
from registry.domain.records import Endpoint
from runnerd.artifacts.loaded import CompiledExtension
from runnerd.dispatch.cpus import find_cpus
from runnerd.dispatch.pool import PoolSettings
from runnerd.dispatch.workers import WorkerFactory
from runnerd.engine.profile import engine_fingerprint
from runnerd.worker.settings import WorkerConfig
from tests.fakes import guests as asset_guests
from tests.fakes.daemon_process import Machine, make_machine
from tests.fakes.dispatch_kit import CONNECTION, OTHER_TENANT, TENANT, Kit, dispatching, make_extension, make_install
from tests.fakes.postgres import admin_database, database_urls, postgres_cluster
from tests.fakes.wat_guests import BAD_STATUS, BIG, GROW, HELLO, HOARD, LOOP, RECURSE, TRAP, compiled

__all__ = ["admin_database", "database_urls", "postgres_cluster"]
REAL = replace(
    CONNECTION, build=metadata.version("extrunner"), engine_fingerprint=engine_fingerprint(), hello_seconds=20.0, grace_seconds=1.0
)
GUESTS = {"hello": HELLO, "big": BIG, "loop": LOOP, "grow": GROW, "hoard": HOARD, "recurse": RECURSE, "trap": TRAP, "status": BAD_STATUS}
RunningKit = Callable[..., AbstractAsyncContextManager[Kit]]


@pytest.fixture(scope="session")
def guests() -> dict[str, CompiledExtension]:
    """Compiled guests by name."""
    ordinary = {f"{name}-unbridged": compiled(GUESTS[name], bridge=False) for name in ("hello", "big")}
    last_words = asset_guests.compiled("log_and_spin")
    speaking = {"last-words": make_extension(last_words.artifact, memories=last_words.memories, bridged=last_words.bridged)}
    return {name: compiled(code) for name, code in GUESTS.items()} | ordinary | speaking


@pytest.fixture
def real_dispatcher(guests: dict[str, CompiledExtension]) -> RunningKit:
    """Return a context manager: a dispatcher whose extensions are the guests, installed as com.example.<guest> for two tenants."""

    @asynccontextmanager
    async def running(**changes: Any) -> AsyncIterator[Kit]:
        settings = PoolSettings(floor=2, ceiling=6, slots=8, spread=2)
        factory = await WorkerFactory.start(WorkerConfig(slots=8), cpus=find_cpus("auto"))
        settings = replace(settings, mandatory_hardening=factory.mandatory_hardening, **changes.pop("pool", {}))
        try:
            async with dispatching(factory.fork, pool=settings, connection=REAL, **changes) as kit:
                for name, extension in guests.items():
                    kit.extensions.add(extension)
                    for tenant in (TENANT, OTHER_TENANT):
                        install = make_install(extension, tenant_id=tenant, endpoints=(Endpoint(method="GET", path="/notes/:id"),))
                        kit.installs.add(replace(install, extension_name=f"com.example.{name}"))
                yield kit
        finally:
            await factory.aclose()

    return running


@pytest.fixture
async def machine(tmp_path: Path, admin_database: Database, database_urls: Mapping[str, str]) -> Machine:
    return await make_machine(tmp_path, database_urls, admin_database)
