"""The daemon's half: answers the child's questions, opens files for it, and never does more work than its own bounds allow.

The child faces the network without authentication, so it is taken to be hostile here: whatever it asks, the daemon resolves at most
a bounded number of unknown versions a second, a bounded number at once, and opens only files of versions that are served now.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry.domain.digests import ContentHash, is_content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import is_extension_name, is_uuid
from runnerd.assets import index as indexes
from runnerd.assets.index import InterfaceFiles
from runnerd.children.budget import Budget

Discard = Callable[[ContentHash], Awaitable[None]]
"""Forgets the files of a content hash, so that the next `Resolve` writes them again from the archive."""
Resolve = Callable[[str, str], Awaitable[InterfaceFiles | None]]
"""(extension id or name, content hash) → its interface where an enabled install has it and it is verified, else None."""

ANSWER_SECONDS = 1.0
"""How long an answer of `resolve` holds. With the child's 1.5 s and a resolver that is 2 s behind, a disable is effective within 5."""
MAX_REFUSALS = 4_096
MAX_INTERFACES = 256
MAX_RESOLVES_AT_ONCE = 8
COLD_RESOLVES_PER_SECOND = 100.0
"""Twice what the child allows itself, so that this bound speaks only when the child is not ours any more."""
COLD_RESOLVES_BURST = 400
DISCARDS_PER_SECOND = 0.1
DISCARDS_BURST = 8
"""Writing an interface again is work; whoever alters files, or claims it, must not decide how often that is done."""

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Answer:
    interface: InterfaceFiles | None
    refusal: RefusalError | None
    until: float


class Catalogue:
    """Which interfaces are served now, by the word of `resolve`, remembered for a moment.

    Args:
        resolve: asks registry and loader; may raise RefusalError.
        root: folder of the files, each at `<first two digits>/<sha256>`.
        discard: told of a content hash whose files are not on disk as they were verified.
        clock: monotonic seconds.
        budget: of questions about versions that were not served a moment ago.
    """

    def __init__(
        self,
        *,
        resolve: Resolve,
        root: Path,
        discard: Discard | None = None,
        clock: Callable[[], float] = time.monotonic,
        budget: Budget | None = None,
    ) -> None:
        self._resolve = resolve
        self._discard = discard
        self._discards = Budget(per_second=DISCARDS_PER_SECOND, burst=DISCARDS_BURST, clock=clock)
        self._root = root
        self._clock = clock
        self._budget = budget or Budget(per_second=COLD_RESOLVES_PER_SECOND, burst=COLD_RESOLVES_BURST, clock=clock)
        self._served: OrderedDict[Key, _Answer] = OrderedDict()
        self._refused: OrderedDict[Key, _Answer] = OrderedDict()
        self._slots = asyncio.Semaphore(MAX_RESOLVES_AT_ONCE)

    async def find(self, extension_id: str, content_hash: str) -> InterfaceFiles:
        """Return the interface of a version that is served now.

        Raises:
            RefusalError: ASSET_NOT_FOUND where it is not served, OVERLOADED where too many unknown versions are asked for, or what
                `resolve` raised.
        """
        if not is_content_hash(content_hash) or not (is_uuid(extension_id) or is_extension_name(extension_id)):
            raise _not_served()
        key = (extension_id, content_hash)
        answer = self._fresh(key)
        if answer is None:
            # A version that was served a moment ago is asked about freely: a flood of unknown ones must not starve it.
            if key not in self._served and not self._budget.take():
                raise RefusalError(Reason.OVERLOADED, "Too many unknown versions are being asked for; try again in a second.")
            async with self._slots:
                answer = self._fresh(key) or await self._ask(key)
        if answer.refusal is not None:
            raise answer.refusal.again()
        if answer.interface is None:
            raise _not_served()
        return answer.interface

    async def index(self, extension_id: str, content_hash: str) -> int:
        """Return the descriptor of a memory file that holds the index of a served version; the caller closes it.

        Raises:
            RefusalError: as `find`; INVALID_BUNDLE where the interface has more files than an index can name.
        """
        interface = await self.find(extension_id, content_hash)
        try:
            return await asyncio.to_thread(_index_file, interface)
        except indexes.IndexFormatError as exc:
            raise RefusalError(Reason.INVALID_BUNDLE, "The interface has too many files to be served.") from exc

    async def open(self, extension_id: str, content_hash: str, path: str) -> int:
        """Return a descriptor of one file of a served version; the caller closes it. What it holds is not verified here.

        Raises:
            RefusalError: as `find`; ASSET_NOT_FOUND where the version has no such file, BUNDLE_UNAVAILABLE where it is not on this
                disk, BUNDLE_CORRUPT where a link or anything but a regular file lies in its place.
        """
        interface = await self.find(extension_id, content_hash)
        file = interface.files.get(path)
        if file is None:
            raise _not_served()
        try:
            return await asyncio.to_thread(_open_below, self._root, file.sha256)
        except RefusalError:
            await self.discard(extension_id, content_hash)
            raise

    async def discard(self, extension_id: str, content_hash: str) -> None:
        """Have the files of a version written again before it is served next, if it is served now and the rate of that allows it."""
        answer = self._served.get((extension_id, content_hash))
        if answer is None or self._discard is None or not self._discards.take():
            return
        await self._discard(ContentHash(content_hash))
        # The answer names files that are no longer there.
        self._served[extension_id, content_hash] = _Answer(answer.interface, None, self._clock())

    def _fresh(self, key: Key) -> _Answer | None:
        # SECURITY: the newer of the two counts; whoever was refused last is not served by an older answer.
        answer = self._refused.get(key) or self._served.get(key)
        return answer if answer is not None and self._clock() < answer.until else None

    async def _ask(self, key: Key) -> _Answer:
        until = self._clock() + ANSWER_SECONDS
        try:
            answer = _Answer(await self._resolve(*key), None, until)
        except RefusalError as refusal:
            answer = _Answer(None, refusal, until)
        self._served.pop(key, None)
        self._refused.pop(key, None)
        kept, limit = (self._refused, MAX_REFUSALS) if answer.interface is None else (self._served, MAX_INTERFACES)
        kept[key] = answer
        while len(kept) > limit:
            kept.popitem(last=False)
        return answer


def _not_served() -> RefusalError:
    return RefusalError(Reason.ASSET_NOT_FOUND, "No enabled install serves this file; check extension, version and path.")


def _index_file(interface: InterfaceFiles) -> int:
    data = indexes.encode(interface)
    descriptor = os.memfd_create("index", os.MFD_CLOEXEC)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], written)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_below(root: Path, digest: str) -> int:
    """Open `<root>/<aa>/<digest>`, following no link at any of its three steps."""
    try:
        with ExitStack() as stack:
            top = stack.enter_context(_folder(root, None))
            below = stack.enter_context(_folder(digest[:2], top))
            descriptor = os.open(digest, _FILE_FLAGS, dir_fd=below)
    except FileNotFoundError as exc:
        raise RefusalError(Reason.BUNDLE_UNAVAILABLE, "The file is not on this machine; try again in a moment.") from exc
    except OSError as exc:
        raise RefusalError(Reason.BUNDLE_CORRUPT, "Something else lies in the place of this file.") from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusalError(Reason.BUNDLE_CORRUPT, "Something else lies in the place of this file.")
    return descriptor


@contextmanager
def _folder(name: Path | str, parent: int | None) -> Iterator[int]:
    descriptor = os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
