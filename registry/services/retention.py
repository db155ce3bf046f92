"""What goes because it is old. Role ext_maintenance."""

from __future__ import annotations

from typing import Final

from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import InstallId, TenantId
from registry.repositories.event_retention import EventRetentionRepository
from registry.repositories.storage_expiry import StorageExpiryRepository

EVENT_DAYS: Final = 7
"""An event that was not delivered in this time will not be: deliveries give up long before."""
_BATCH_ROWS: Final = 1_000
_BATCH_DEADLINE_SECONDS: Final = 30.0


class RetentionService:
    """Deletes in small transactions, so that nobody waits for it and an interruption loses little."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sweep_events(self, *, days: int = EVENT_DAYS, batch: int = _BATCH_ROWS) -> int:
        """Delete events that are older than `days`, delivered or not; return how many.

        Raises:
            RefusalError: INVALID_REQUEST (less than a day), REGISTRY_UNAVAILABLE: what was deleted until then is.
        """
        if days < 1:
            raise RefusalError(Reason.INVALID_REQUEST, "Events are kept for one day at least.")
        deleted = 0
        while True:
            async with self._database.session(deadline_seconds=_BATCH_DEADLINE_SECONDS) as session:
                gone = await EventRetentionRepository(session).delete_older_than(days, limit=batch)
            deleted += gone
            if gone < batch:
                return deleted

    async def sweep_storage(self, *, batch: int = _BATCH_ROWS) -> int:
        """Delete what extensions stored and what has expired, and keep their sums; return how many records.

        Several may sweep at once: each leaves out installs that somebody else is writing to or clearing, and those wait for the next time.

        Raises:
            RefusalError: REGISTRY_UNAVAILABLE: what was deleted until then is.
        """
        deleted = 0
        # SECURITY: an install that never stops writing must not be all that is ever looked at.
        busy: set[tuple[TenantId, InstallId]] = set()
        while True:
            async with self._database.session(deadline_seconds=_BATCH_DEADLINE_SECONDS) as session:
                overdue = await StorageExpiryRepository(session).list_overdue(limit=batch, without=busy)
            if not overdue:
                return deleted
            for tenant_id, install_id in overdue:
                async with self._database.session(deadline_seconds=_BATCH_DEADLINE_SECONDS) as session:
                    cleared = await StorageExpiryRepository(session).clear(tenant_id, install_id, most=batch)
                if not cleared:
                    busy.add((tenant_id, install_id))
                deleted += cleared
