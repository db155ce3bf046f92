"""A database that counts how many sessions a service holds at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from registry.database import Database, Session


class CountingDatabase:
    """Passes on to `database`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.open = 0
        self.most = 0
        """So many were open at once."""

    @asynccontextmanager
    async def tenant_session(self, tenant_id: str) -> AsyncIterator[Session]:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            async with self.database.tenant_session(tenant_id) as session:
                yield session
        finally:
            self.open -= 1
