"""The cell's end of the channel to its supervisor: takes orders, and answers what operators ask."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from runnerd.cells.channel import Channel
from runnerd.cells.commands import Commands


class Link:
    """A cell's tie to its supervisor."""

    def __init__(self, commands: Commands) -> None:
        """Use `linked` instead."""
        self._commands = commands
        self._channel: Channel | None = None
        self._answers: dict[str, Callable[[], object]] = {"ready": lambda: False, "metrics": list}

    async def open(self, control: int) -> asyncio.Task[None]:
        """Take over a descriptor; return the task that reads until the supervisor is gone."""
        self._channel = await Channel.open(socket.socket(fileno=control), self._told)
        return asyncio.get_running_loop().create_task(self._channel.run())

    async def aclose(self, reading: asyncio.Task[None]) -> None:
        """Let go."""
        if self._channel is not None:
            self._channel.close()
        await asyncio.wait({reading})

    def attach(self, *, is_ready: Callable[[], bool], metrics: Callable[[], list[Any]]) -> None:
        """Say what to answer from now on."""
        self._answers = {"ready": is_ready, "metrics": metrics}

    def serving(self, *, grpc_port: int, assets_port: int | None) -> None:
        """Tell the supervisor that calls are taken."""
        if self._channel is not None:
            self._channel.tell("serving", {"grpc_port": grpc_port, "assets_port": assets_port})

    def _told(self, what: str, _value: object) -> object:
        match what:
            case "stop":
                self._commands.stop()
            case "renew":
                self._commands.hangup.set()
            case _:
                return self._answers[what]()
        return None


@asynccontextmanager
async def linked(control: int, commands: Commands) -> AsyncIterator[Link]:
    """Hold the link while the block runs.

    Args:
        control: descriptor of this end of the channel.
        commands: where orders go. That the supervisor is gone needs none: the kernel then ends this process.
    """
    link = Link(commands)
    reading = await link.open(control)
    try:
        yield link
    finally:
        await link.aclose(reading)
