"""Which components one worker has mapped, under which numbers; loads once, drops the least recently used."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from extrunner.worker.v1 import worker_pb2
from runnerd.artifacts.loaded import CompiledExtension
from runnerd.dispatch.channel import FrameChannel
from runnerd.worker.frames import NO_CALL, FrameKind


@dataclass(slots=True, eq=False)
class _Mapped:
    number: int
    loading: asyncio.Task[None]
    users: int = 0


class MappedComponents:
    """The components of one worker.

    Args:
        channel: to the worker.
        limit: how many stay mapped; those in use beyond that stay until they are not.
    """

    def __init__(self, channel: FrameChannel, *, limit: int) -> None:
        self._channel = channel
        self._limit = limit
        self._mapped: OrderedDict[tuple[str, int, bool], _Mapped] = OrderedDict()
        self._next = 1

    @asynccontextmanager
    async def use(self, extension: CompiledExtension) -> AsyncIterator[int]:
        """Yield the number of a component whose LOAD is on its way; it is not dropped while the block runs.

        Raises:
            ChannelClosedError: the channel has ended.
        """
        identity = _identity(extension)
        mapped = self._mapped.get(identity)
        if mapped is None:
            # A task of its own: who came first may be cancelled, the others still need the component.
            mapped = _Mapped(self._next, asyncio.get_running_loop().create_task(self._load(self._next, extension)))
            self._next += 1
            self._mapped[identity] = mapped
        self._mapped.move_to_end(identity)
        mapped.users += 1
        try:
            await asyncio.shield(mapped.loading)
            await self._drop_surplus()
            yield mapped.number
        finally:
            mapped.users -= 1

    def ready(self, extension: CompiledExtension) -> int | None:
        """Return the number of a component that was sent, for use before anything else happens; None where `use` has something to do."""
        identity = _identity(extension)
        mapped = self._mapped.get(identity)
        if mapped is None or len(self._mapped) > self._limit:
            return None
        loading = mapped.loading
        if not loading.done() or loading.cancelled() or loading.exception() is not None:
            return None
        self._mapped.move_to_end(identity)
        return mapped.number

    def forget(self, extension: CompiledExtension) -> None:
        """Send a component again the next time: the worker could not use it."""
        self._mapped.pop(_identity(extension), None)

    async def _load(self, number: int, extension: CompiledExtension) -> None:
        load = worker_pb2.LoadComponent(
            component=number, size=extension.artifact.size, memories=extension.memories, bridged=extension.bridged
        )
        await self._channel.send_descriptor(
            FrameKind.LOAD, load.SerializeToString(), descriptor=extension.artifact.fileno(), keep=extension.artifact
        )

    async def _drop_surplus(self) -> None:
        for identity, mapped in list(self._mapped.items()):
            if len(self._mapped) <= self._limit:
                return
            if mapped.users == 0 and self._mapped.pop(identity, None) is not None:
                await self._channel.send(FrameKind.DROP, NO_CALL, worker_pb2.DropComponent(component=mapped.number).SerializeToString())


def _identity(extension: CompiledExtension) -> tuple[str, int, bool]:
    # SECURITY: the digest of the native code itself, never a name or a bundle's hash (T1).
    return extension.artifact.sha256, extension.memories, extension.bridged
