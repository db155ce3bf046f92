"""Operations of the storage a second, by how many callers there are: the daemon's own service over the machine's PostgreSQL, in a process.

All callers are of one install, the hardest case for writes: each locks the install's sums. Values are 1 KiB; a commit waits for the disk.
What a guest's call adds to it is in `host_call_us`.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from registry.database import Database
from registry.domain.ids import InstallId, TenantId
from registry.domain.records import StorageItem
from registry.migrations.roles import ADMIN, RUNNER
from registry.services.installing import InstallService
from registry.services.storage import MAX_ITEMS, StorageService
from scripts.benchmark.bench import PROBE_TENANT, Bench, Figures
from scripts.demonstration.samples import javascript_is_available

CALLERS: Final = (1, 8, 32)
POOL_SIZE: Final = 10
"""As in the daemon."""
_TENANT: Final = TenantId(PROBE_TENANT)
_NAMESPACE: Final = "benchmark"
_VALUE: Final = bytes(1024)
_PAGE: Final = 25

Operation = Callable[[int], Awaitable[object]]
"""What a caller does again and again; it is told which caller it is."""


def measure(bench: Bench) -> Figures:
    """Return the figures."""
    if not javascript_is_available():
        bench.miss("storage: no extension to install, since Node.js or componentize-js is not installed")
        return {}
    extension = bench.probe.name
    urls = {role: bench.machine.state.database_url_file(role).read_text("utf-8").strip() for role in (ADMIN, RUNNER)}
    return {"storage_ops_per_s": asyncio.run(_measure(urls, extension, seconds=0.25 if bench.quick else 3.0))}


async def _measure(urls: Mapping[str, str], extension: str, *, seconds: float) -> dict[str, dict[str, int]]:
    admin = await Database.connect(urls[ADMIN], expected_role=ADMIN, pool_size=1)
    try:
        installs, _ = await InstallService(admin).list(_TENANT)
    finally:
        await admin.aclose()
    install_id = next(install.install_id for install in installs if install.extension_name == extension)
    runner = await Database.connect(urls[RUNNER], expected_role=RUNNER, pool_size=POOL_SIZE)
    try:
        return {
            name: {str(callers): await storage_ops_per_s(operation, callers=callers, seconds=seconds) for callers in CALLERS}
            for name, operation in operations(StorageService(runner), _TENANT, install_id).items()
        }
    finally:
        await runner.aclose()


def operations(storage: StorageService, tenant_id: TenantId, install_id: InstallId) -> Mapping[str, Operation]:
    """Return what is measured, by name, in an order in which what is read was written before."""

    async def put(caller: int) -> None:
        await storage.put(tenant_id, install_id, _NAMESPACE, StorageItem(key=f"{caller}", value=_VALUE))

    async def put_many(caller: int) -> None:
        items = [StorageItem(key=f"{caller}-{number}", value=_VALUE) for number in range(MAX_ITEMS)]
        await storage.put_many(tenant_id, install_id, _NAMESPACE, items)

    async def get(caller: int) -> None:
        await storage.get(tenant_id, install_id, _NAMESPACE, f"{caller}")

    async def list_page(_: int) -> None:
        await storage.list_entries(tenant_id, install_id, _NAMESPACE, limit=_PAGE)

    return {"put": put, "put_many_20": put_many, "get": get, "list_25": list_page}


async def storage_ops_per_s(operation: Operation, *, callers: int, seconds: float) -> int:
    """Return how often an operation is done in a second by so many callers at once, each waiting for its own before the next."""
    await asyncio.gather(*map(operation, range(callers)))
    done = itertools.count()
    began = time.monotonic()

    async def call(caller: int) -> None:
        while time.monotonic() - began < seconds:
            await operation(caller)
            next(done)

    await asyncio.gather(*map(call, range(callers)))
    return round(next(done) / (time.monotonic() - began))
