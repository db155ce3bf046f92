"""What the child knows about which interfaces are served, and how it asks the daemon.

Answers are kept for less than two seconds, so that disabling an install or denying a hash takes effect within five (T37); an index
itself never changes (its name is the hash of its content), so a renewed answer is one small frame. Questions about versions that were
never served pass a token bucket: whoever tries random hashes learns nothing and costs the daemon nothing beyond that rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from registry.domain.errors import Reason, RefusalError
from runnerd.assets import index as indexes
from runnerd.assets.channel import MAX_INDEX_BYTES, MAX_OUTSTANDING, ChannelClosedError, Frame
from runnerd.assets.index import Index
from runnerd.assets.paths import AssetPath
from runnerd.children.budget import Budget

ANSWER_SECONDS = 1.5
"""How long an answer holds, counted from the question."""
ASK_TIMEOUT_SECONDS = 10.0
"""The first load of a version downloads and verifies its bundle."""
MAX_REFUSALS = 4_096
MAX_INDEXES = 256
MAX_INDEXED_FILES = 100_000
"""Paths of all kept indexes together: about 30 MB."""
COLD_ASKS_PER_SECOND = 50.0
COLD_ASKS_BURST = 200
OPENS_PER_SECOND = 200.0
OPENS_BURST = 1_000
"""Files that are not among those kept open. Whoever fetches more different files than are kept meets this bound, not the daemon."""

Key = tuple[str, str]


@dataclass(slots=True)
class _Served:
    index: Index
    fresh_until: float


@dataclass(slots=True)
class _Refused:
    refusal: RefusalError
    until: float


class Asker:
    """Sends asks and matches answers to them."""

    def __init__(self) -> None:
        self._send: Callable[[Frame], None] = _no_channel
        self._waiting: dict[int, asyncio.Future[tuple[Frame, int | None]]] = {}
        self._last_id = 0

    def connect(self, send: Callable[[Frame], None]) -> None:
        """Use `send` to put frames on the control channel."""
        self._send = send

    @property
    def is_half_full(self) -> bool:
        """Whether half of the places for asks are taken; the rest is for versions that are known to be served."""
        return len(self._waiting) >= MAX_OUTSTANDING // 2

    async def ask(self, **question: Any) -> tuple[Frame, int | None]:
        """Ask the daemon; return its answer and the descriptor that came with it, which the caller owns.

        Raises:
            RefusalError: what the daemon refused with, or OVERLOADED where too many asks wait or it does not answer.
        """
        if len(self._waiting) >= MAX_OUTSTANDING:
            raise _overloaded()
        self._last_id += 1
        number = self._last_id
        future: asyncio.Future[tuple[Frame, int | None]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send({"id": number, **question})
            frame, descriptor = await asyncio.wait_for(future, ASK_TIMEOUT_SECONDS)
        except (ChannelClosedError, TimeoutError) as exc:
            raise _overloaded() from exc
        finally:
            # An answer that comes after this is dropped, and its descriptor closed, by `answered`.
            self._waiting.pop(number, None)
        if "reason" in frame:
            _close(descriptor)
            raise _refusal(frame)
        return frame, descriptor

    def answered(self, frame: Frame, descriptor: int | None) -> None:
        """Hand an answer to whoever waits for it; nobody waits for an unknown id."""
        future = self._waiting.get(frame.get("id", 0))
        if future is None or future.done():
            _close(descriptor)
        else:
            future.set_result((frame, descriptor))


class Lookup:
    """Which interfaces are served, as of less than two seconds ago."""

    def __init__(self, asker: Asker, *, clock: Callable[[], float] = time.monotonic, budget: Budget | None = None) -> None:
        self._asker = asker
        self._clock = clock
        self._budget = budget or Budget(per_second=COLD_ASKS_PER_SECOND, burst=COLD_ASKS_BURST, clock=clock)
        self._opens = Budget(per_second=OPENS_PER_SECOND, burst=OPENS_BURST, clock=clock)
        self._served: OrderedDict[Key, _Served] = OrderedDict()
        self._refused: OrderedDict[Key, _Refused] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[Index]] = {}

    async def find(self, asset: AssetPath) -> Index:
        """Return the index of the version that `asset` names.

        Raises:
            RefusalError: ASSET_NOT_FOUND where it is not served, HASH_DENIED where it was revoked, OVERLOADED where the rate of
                questions about unknown versions is used up, or what else the daemon refused with.
        """
        key = (asset.extension_id, asset.content_hash)
        now = self._clock()
        served = self._served.get(key)
        if served is not None and now < served.fresh_until:
            self._served.move_to_end(key)
            return served.index
        refused = self._refused.get(key)
        if refused is not None and now < refused.until:
            raise refused.refusal.again()
        task = self._asking.get(key)
        if task is None:
            # A version that was served before renews its answer freely: there are few of those, and a flood must not starve them.
            if served is None and (self._asker.is_half_full or not self._budget.take()):
                raise _overloaded()
            task = asyncio.get_running_loop().create_task(self._ask(key, served))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        return await asyncio.shield(task)

    async def open(self, asset: AssetPath, path: str) -> int:
        """Return a descriptor of one file of a served version, not verified yet.

        Raises:
            RefusalError: BUNDLE_CORRUPT, BUNDLE_UNAVAILABLE or what else the daemon refused with; OVERLOADED where too many files are
                opened.
        """
        if not self._opens.take():
            raise _overloaded()
        _, descriptor = await self._asker.ask(op="open", extension=asset.extension_id, hash=asset.content_hash, path=path)
        if descriptor is None:
            raise RefusalError(Reason.INTERNAL, "The file could not be opened.")
        return descriptor

    async def _ask(self, key: Key, served: _Served | None) -> Index:
        asked_at = self._clock()
        try:
            _, descriptor = await self._asker.ask(op="resolve", extension=key[0], hash=key[1], known=served is not None)
            index = _read_index(descriptor) if served is None else served.index
        except RefusalError as refusal:
            # SECURITY: whatever the reason, nothing is served: an earlier answer is not renewed. Only its index is kept for later.
            if refusal.reason is not Reason.OVERLOADED:
                self._remember_refusal(key, refusal, asked_at + ANSWER_SECONDS)
            raise
        self._refused.pop(key, None)
        self._served[key] = _Served(index, asked_at + ANSWER_SECONDS)
        self._served.move_to_end(key)
        self._shrink()
        return index

    def _asked(self, key: Key, done: asyncio.Task[Index]) -> None:
        self._asking.pop(key, None)
        if not done.cancelled():
            done.exception()  # Seen here, so that nothing is logged where every reader has gone away.

    def _remember_refusal(self, key: Key, refusal: RefusalError, until: float) -> None:
        self._refused[key] = _Refused(refusal, until)
        self._refused.move_to_end(key)
        while len(self._refused) > MAX_REFUSALS:
            self._refused.popitem(last=False)

    def _shrink(self) -> None:
        total = sum(len(entry.index.files) for entry in self._served.values())
        while len(self._served) > 1 and (len(self._served) > MAX_INDEXES or total > MAX_INDEXED_FILES):
            _, oldest = self._served.popitem(last=False)
            total -= len(oldest.index.files)


def _no_channel(frame: Frame) -> None:
    message = f"no control channel yet for {frame.get('op')}"
    raise ChannelClosedError(message)


def _read_index(descriptor: int | None) -> Index:
    if descriptor is None:
        raise RefusalError(Reason.INTERNAL, "The index of this interface is missing.")
    try:
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            return indexes.decode(os.pread(file.fileno(), MAX_INDEX_BYTES, 0))
    except (OSError, indexes.IndexFormatError) as exc:
        raise RefusalError(Reason.INTERNAL, "The index of this interface cannot be read.") from exc


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _refusal(frame: Frame) -> RefusalError:
    reason = frame["reason"]
    known = Reason(reason) if reason in Reason.__members__ else Reason.INTERNAL
    return RefusalError(known, str(frame.get("detail", "The file cannot be served.")))


def _overloaded() -> RefusalError:
    return RefusalError(Reason.OVERLOADED, "The file server has no room for this request; try again in a second.")
