"""What `extctl db sweep` does: once, or again and again as a small process of its own beside the daemons.

It has the role ext_maintenance and listens nowhere: the daemon, which answers guests, can delete nothing across tenants.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress

import structlog

from registry.database import Database
from registry.domain.errors import RefusalError
from registry.logs import configure_logs
from registry.migrations.roles import MAINTENANCE
from registry.services.retention import RetentionService

_log = structlog.get_logger(__name__)


async def sweep_once(url: str, *, event_days: int) -> Mapping[str, int]:
    """Delete what is past its time and return how much of each kind.

    Raises:
        RefusalError: REGISTRY_UNAVAILABLE: what was deleted until then is.
        UnsafeDatabaseRoleError: not ext_maintenance.
    """
    database = await Database.connect(url, expected_role=MAINTENANCE, pool_size=1)
    try:
        retention = RetentionService(database)
        return {"records": await retention.sweep_storage(), "events": await retention.sweep_events(days=event_days)}
    finally:
        await database.aclose()


async def sweep_forever(url: str, *, event_days: int, every_seconds: float) -> None:
    """Sweep, and again after each pause, until SIGTERM or SIGINT. A database that is away is told to the log and tried again.

    Raises:
        UnsafeDatabaseRoleError: not ext_maintenance.
    """
    configure_logs("extctl-sweep")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _log.info("sweeping", every_seconds=every_seconds)
    total: dict[str, int] = {}
    while not stop.is_set():
        try:
            swept = await sweep_once(url, event_days=event_days)
        except RefusalError as refusal:
            _log.warning("sweep_failed", reason=refusal.reason.value)
        else:
            total = {kind: total.get(kind, 0) + count for kind, count in swept.items()}
            _log.info("swept", **swept, **{f"{kind}_since_start": count for kind, count in total.items()})
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every_seconds)
    _log.info("stopped")
