"""What supervisor and cell say to each other: JSON messages, one a line, over a socketpair that only they hold.

    supervisor → cell   ask "ready" → bool · ask "metrics" → families · tell "stop" · tell "renew"
    cell → supervisor   tell "serving" {"grpc_port": …, "assets_port": …}

Signals would do for the orders, were it not for service managers that send theirs to every process of a group: a cell would take the
second one for "do not wait". So cells take orders from here only. Its end of file says that the other side is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Callable
from typing import Any, Final

import structlog

MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""Far more than the metrics of one cell."""

_log = structlog.get_logger(__name__)


class Channel:
    """One end. Made by `open`; `run` reads until the other end closes.

    Args:
        reader: from the other end.
        writer: to the other end.
        answer: called with what the other end asks or tells, and its value; what it returns is the answer.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Callable[[str, Any], object]) -> None:
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)

    @classmethod
    async def open(cls, end: socket.socket, answer: Callable[[str, Any], object]) -> Channel:
        """Take over one end of a socketpair."""
        end.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=MAX_MESSAGE_BYTES)
        return cls(reader, writer, answer)

    async def run(self) -> None:
        """Read until the other end is gone or says what cannot be; then nobody waits for an answer any more."""
        try:
            while line := await self._reader.readline():
                self._take(json.loads(line))
        except (OSError, ValueError, LookupError, TypeError) as error:
            _log.error("channel_broken", kind=type(error).__name__, detail=str(error))
        finally:
            self.close()

    def close(self) -> None:
        """Let the other end know that this one is gone."""
        self._writer.close()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the other end is gone"))
                # Whoever waits hears of it; where nobody does, that is no mistake.
                future.exception()
        self._asked.clear()

    async def ask(self, what: str, *, seconds: float) -> Any:
        """Ask the other end and wait for its answer.

        Raises:
            ConnectionError: it is gone.
            TimeoutError: it does not answer.
        """
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"what": what, "number": number})
            async with asyncio.timeout(seconds):
                return await future
        finally:
            self._asked.pop(number, None)

    def tell(self, what: str, value: object = None) -> None:
        """Say something that needs no answer; nothing where the other end is gone."""
        if not self._writer.is_closing():
            self._send({"what": what, "value": value})

    def _take(self, message: dict[str, Any]) -> None:
        if "answer" in message:
            future = self._asked.get(message["number"])
            if future is not None and not future.done():
                future.set_result(message["answer"])
            return
        answer = self._answer(message["what"], message.get("value"))
        if "number" in message:
            self._send({"answer": answer, "number": message["number"]})

    def _send(self, message: dict[str, object]) -> None:
        if self._writer.is_closing():
            error = "the other end is gone"
            raise ConnectionResetError(error)
        self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
