"""Turns of an install: how many of its changes may be under way in one daemon at once; the others wait here.

Attack it stops: a crowd of calls of one install that wait for its row in the database, each with a connection in hand, until other
tenants find none.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from registry.domain.ids import InstallId, TenantId


class InstallTurns:
    """Turns of all installs; used from one event loop. An install that nobody waits for costs nothing.

    Args:
        at_once: changes of one install.
    """

    def __init__(self, at_once: int = 1) -> None:
        self._at_once = at_once
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Semaphore] = WeakValueDictionary()

    def of(self, tenant_id: TenantId | str, install_id: InstallId | str) -> asyncio.Semaphore:
        """Return what a change of the install enters (`async with`) before it asks for a connection."""
        return self._turns.setdefault((tenant_id, install_id), asyncio.Semaphore(self._at_once))

    def __len__(self) -> int:
        """How many installs somebody has a turn of, or waits for one."""
        return len(self._turns)
