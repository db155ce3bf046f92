"""Reading secrets, in the daemon: row, expiry, opening, a short memory of what was opened, and a note of what was refused. Role ext_runner.

Attacks it stops: an envelope that was moved or changed is refused, written to the audit log (so often and no more), and fails that one
call; an expired secret is not handed out, whatever is remembered (reference §18.9 no. 96); plain text does not pile up in memory (no. 97).

    SecretRefusalError   one of the cases that the guest's world knows, with a sentence for the log
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from registry.database import Database
from registry.domain.errors import RefusalError
from registry.domain.ids import InstallId, TenantId, is_secret_name
from registry.flights import SingleFlight
from registry.repositories.audit import AuditRepository
from registry.repositories.secrets import SecretRepository, StoredSecret
from registry.secrets.binding import Binding
from registry.secrets.envelope import EnvelopeRejectedError, SecretEnvelopeError, UnknownKeyError
from registry.secrets.opening import Opener

_LOG = logging.getLogger(__name__)
MAX_MEMORY_SECONDS: Final = 30.0
ACTOR: Final = "runnerd"
REFUSED: Final = "secret.refuse"
_NOTE_SECONDS: Final = 60.0
_NOTES_PER_MINUTE: Final = 60


class SecretCase(StrEnum):
    """The cases of the guest's `secret-error`."""

    MISSING = "missing"
    DENIED = "denied"
    EXPIRED = "expired"
    INTERNAL = "internal"


class SecretRefusalError(Exception):
    """A typed refusal. `case` goes to the guest, `detail` to the log; neither holds a value."""

    def __init__(self, case: SecretCase, detail: str) -> None:
        super().__init__(f"{case}: {detail}")
        self.case = case
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretMemory:
    """How much plain text the daemon may remember, and for how long."""

    seconds: float = MAX_MEMORY_SECONDS
    """0 remembers nothing."""
    entries: int = 256


class SecretReader:
    """Opens what an install may read. Used from one event loop.

    The row is read each time, so that a new value, an expiry or a deletion counts at once; what is remembered saves the opening alone.

    Args:
        database: of role ext_runner.
        opener: has the keys.
        memory: bounds of what is remembered.
        clock: monotonic seconds.
    """

    def __init__(
        self, database: Database, opener: Opener, *, memory: SecretMemory | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._opener = opener
        self._opened = _Opened(memory or SecretMemory(), clock)
        self._notes = _Notes(clock)
        self._opening: SingleFlight[bytes, str] = SingleFlight()

    async def read(self, tenant_id: TenantId, install_id: InstallId, name: str) -> str:
        """Return a value.

        Raises:
            SecretRefusalError: missing, expired, internal (no answer from the registry or the key service, or not our envelope).
        """
        if not is_secret_name(name):
            raise SecretRefusalError(SecretCase.MISSING, "no secret can have such a name")
        try:
            async with self._database.tenant_session(tenant_id) as session:
                stored = await SecretRepository(session, tenant_id).find(install_id, name)
        except RefusalError as refusal:
            raise SecretRefusalError(SecretCase.INTERNAL, refusal.public_detail) from refusal
        if stored is None:
            raise SecretRefusalError(SecretCase.MISSING, "there is no secret of this name")
        if stored.seconds_left is not None and stored.seconds_left <= 0:
            raise SecretRefusalError(SecretCase.EXPIRED, "the secret has expired")
        binding = Binding(tenant_id=tenant_id, install_id=install_id, name=name, version=stored.version)
        try:
            return await self._open(stored, binding)
        except SecretEnvelopeError as error:
            if isinstance(error, EnvelopeRejectedError | UnknownKeyError):
                await self._note(binding, error)
            raise SecretRefusalError(SecretCase.INTERNAL, str(error)) from None

    async def names(self, tenant_id: TenantId, install_id: InstallId) -> tuple[str, ...]:
        """Return the names of an install's secrets, expired ones included.

        Raises:
            SecretRefusalError: internal.
        """
        try:
            async with self._database.tenant_session(tenant_id) as session:
                return await SecretRepository(session, tenant_id).names(install_id)
        except RefusalError as refusal:
            raise SecretRefusalError(SecretCase.INTERNAL, refusal.public_detail) from refusal

    async def aclose(self) -> None:
        """Forget what was opened, end what is being opened, and close the connections to the key service."""
        await self._opening.aclose()
        self._opened.clear()
        await self._opener.aclose()

    async def _open(self, stored: StoredSecret, binding: Binding) -> str:
        key = _key_of(stored, binding)
        remembered = self._opened.find(key)
        if remembered is not None:
            return remembered
        # One question for all who wait: a guest that asks in a loop must not be a crowd before the key service.
        return await self._opening.run(key, lambda: self._open_anew(key, stored, binding))

    async def _open_anew(self, key: bytes, stored: StoredSecret, binding: Binding) -> str:
        value = await self._opener.open(stored.envelope, binding)
        try:
            text = value.decode()
        except UnicodeDecodeError:
            message = "the value is no text"
            raise EnvelopeRejectedError(message) from None
        self._opened.keep(key, text, seconds_left=stored.seconds_left)
        return text

    async def _note(self, binding: Binding, error: SecretEnvelopeError) -> None:
        """Write a refusal down. What fails here is logged: the guest's answer does not depend on it."""
        place = {"tenant_id": binding.tenant_id, "install_id": binding.install_id}
        _LOG.error("secret envelope refused: %s", error, extra=place)
        if not self._notes.admit((binding.tenant_id, binding.install_id, binding.name)):
            return
        detail = {"name": binding.name, "version": binding.version, "why": str(error)}
        try:
            async with self._database.tenant_session(binding.tenant_id) as session:
                audit = AuditRepository(session, binding.tenant_id)
                await audit.record(actor=ACTOR, action=REFUSED, subject=binding.install_id, detail=detail)
        except RefusalError as refusal:
            _LOG.error("refused secret envelope not written to the audit log: %s", refusal, extra=place)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    until: float
    value: str
    timer: asyncio.TimerHandle


class _Opened:
    """Plain text, so much of it and so long."""

    def __init__(self, memory: SecretMemory, clock: Callable[[], float]) -> None:
        if not 0 <= memory.seconds <= MAX_MEMORY_SECONDS or memory.entries < 1:
            message = f"secrets are remembered for 0 to {MAX_MEMORY_SECONDS} seconds, and at least one of them"
            raise ValueError(message)
        self._memory = memory
        self._clock = clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    def find(self, key: bytes) -> str | None:
        kept = self._kept.get(key)
        return kept.value if kept is not None and self._clock() < kept.until else None

    def keep(self, key: bytes, value: str, *, seconds_left: float | None) -> None:
        seconds = self._memory.seconds if seconds_left is None else min(self._memory.seconds, seconds_left)
        if seconds <= 0:
            return
        self._forget(key)
        # A timer, so that plain text also goes where nobody asks any more.
        timer = asyncio.get_running_loop().call_later(seconds, self._forget, key)
        self._kept[key] = _Kept(until=self._clock() + seconds, value=value, timer=timer)
        if len(self._kept) > self._memory.entries:
            self._forget(next(iter(self._kept)))

    def clear(self) -> None:
        for key in tuple(self._kept):
            self._forget(key)

    def __len__(self) -> int:
        return len(self._kept)

    def _forget(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.timer.cancel()


class _Notes:
    """How often refusals are written down: once a minute for each secret, and no more than a minute's share of them all."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._noted: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def admit(self, place: tuple[str, str, str]) -> bool:
        now = self._clock()
        while self._noted and next(iter(self._noted.values())) <= now - _NOTE_SECONDS:
            self._noted.popitem(last=False)
        if place in self._noted or len(self._noted) >= _NOTES_PER_MINUTE:
            return False
        self._noted[place] = now
        return True


def _key_of(stored: StoredSecret, binding: Binding) -> bytes:
    """Return what a remembered value is found under: its place, and every byte of its envelope.

    SECURITY: not the place alone: a version may come back after a deletion, and an envelope that was moved here must be met.
    """
    envelope = stored.envelope
    parts = (binding.associated_data(), envelope.key.kek_id.encode(), envelope.key.wrapped, envelope.ciphertext)
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
