"""Who of a fleet compiles an artifact now: one daemon, while the others wait for what it shares (T39).

A claim is an object beside the artifact's that one daemon created; it is written anew while the work goes on, so one that does not change
for a while belongs to nobody any more. No clock of another machine is believed, and nothing but time can be lost by a false claim, one that
cannot be read included: whoever waited for long enough does the work itself, and two who work at once make the same thing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time

from registry.bundles.store import BundleStore, ObjectNotFoundError
from registry.domain.errors import RefusalError

_LOG = logging.getLogger(__name__)
_MAX_CLAIM_BYTES = 256
_TYPE = "text/plain"
STALE_SECONDS = 30.0
"""A claim that was not renewed for this long belongs to nobody."""
RENEWALS = 3
"""How often a claim is renewed in that time."""


class Claims:
    """The claims of one daemon. Belongs to one event loop.

    Every method may raise `RefusalError(BUNDLE_UNAVAILABLE)` but `release` and `aclose`.

    Args:
        store: where they lie.
        stale_seconds: after which an unchanged claim of another daemon is taken over.
    """

    def __init__(self, store: BundleStore, *, stale_seconds: float = STALE_SECONDS) -> None:
        self._store = store
        self._stale_seconds = stale_seconds
        self._held: set[str] = set()
        self._seen: dict[str, tuple[bytes, float]] = {}
        """Claims of others that somebody waits for: what they said, and since when, on the clock of `time.monotonic()`."""
        self._renewing: asyncio.Task[None] | None = None

    async def take(self, key: str) -> bool:
        """Create the claim at `key`; False where another daemon has it and is alive."""
        if not await self._write(key):
            if not await self._is_stale(key):
                return False
            _LOG.warning("claim of another daemon is stale", extra={"claim": key})
            await self._store.delete(key)
            if not await self._write(key):
                # Another one that waited was faster.
                return False
        self.forget(key)
        self._held.add(key)
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew())
        return True

    def forget(self, key: str) -> None:
        """Stop watching a claim of another daemon."""
        self._seen.pop(key, None)

    async def release(self, key: str) -> None:
        """Give up a claim of this daemon, if it has it. A store that does not answer leaves it to become stale."""
        if key in self._held:
            self._held.discard(key)
            with contextlib.suppress(RefusalError):
                await self._store.delete(key)

    async def aclose(self) -> None:
        """Stop renewing. What is held becomes stale."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None

    async def _write(self, key: str) -> bool:
        return await self._store.put_if_absent(key, secrets.token_hex(16).encode(), content_type=_TYPE)

    async def _is_stale(self, key: str) -> bool:
        try:
            said = await self._store.read(key, _MAX_CLAIM_BYTES)
        except ObjectNotFoundError:
            # Given up in this moment; the next try gets it.
            return False
        except RefusalError as refusal:
            if refusal.row.retry_after_seconds is not None:
                raise
            # SECURITY: longer than any claim, so no daemon wrote it. What cannot be read does not change: it is waited for, then overtaken.
            said = b""
        before = self._seen.get(key)
        if before is None or before[0] != said:
            self._seen[key] = (said, time.monotonic())
            return False
        return time.monotonic() - before[1] >= self._stale_seconds

    async def _renew(self) -> None:
        """Write every claim held anew, a few times before it would be stale. Who looks in between may take it, and then keeps it."""
        while True:
            await asyncio.sleep(self._stale_seconds / RENEWALS)
            for key in list(self._held):
                with contextlib.suppress(RefusalError):
                    await self._store.delete(key)
                    # Released while the line above waited: then nobody would take the new one away.
                    if key in self._held and not await self._write(key):
                        # Another daemon's now: not ours to renew, nor to remove.
                        self._held.discard(key)
