"""Idempotency keys of the writes that an invocation makes at the host platform.

The accident it stops: a write whose answer was lost is made again, by the guest or by whoever repeats the invocation, and a customer gets
two invoices. The key of a write follows from what identifies the invocation and from the write's place in it, so that a repeated
invocation sends the keys it sent before; a write whose end is not known keeps its key until it is; and two writes that both succeeded
never had the same one.
"""

from __future__ import annotations

import hashlib


class WriteLedger:
    """The writes of one invocation. Its guest makes one host call at a time, so there is never more than one under way.

    Args:
        origin: what identifies the invocation; the same where it is repeated, and nobody else's.
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._writes = 0
        # At most one for each host call that the invocation may make.
        self._unsettled: dict[bytes, str] = {}

    def key_for(self, *parts: bytes) -> str:
        """Return the key of a write and remember it as one whose end is not known.

        Args:
            parts: everything that makes this write what it is.
        """
        content = _digest(*parts)
        key = self._unsettled.get(content)
        if key is None:
            self._writes += 1
            key = _digest(self._origin.encode(), str(self._writes).encode()).hex()
            self._unsettled[content] = key
        return key

    def settle(self, key: str) -> None:
        """Say that the end of a write is known: the next one, even of the same content, is another."""
        self._unsettled = {content: other for content, other in self._unsettled.items() if other != key}


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
