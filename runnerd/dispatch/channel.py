"""The daemon's end of one worker's socketpair: frames in, frames out, descriptors along, everything bounded.

The attack it stops (T4): a worker that claims 4 GiB, floods, or never reads. Lengths are checked before a byte is kept
(`FrameDecoder`), at most one frame is queued beyond the high-water mark, and a worker that takes nothing for `stall_seconds` is given up.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from runnerd.worker.frames import READ_CHUNK_BYTES, Frame, FrameDecoder, FrameError, FrameKind, encode_header, send_descriptor

HIGH_WATER_BYTES = 256 * 1024
MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""Above the largest pair of frames (a request at the ceiling); what is beyond is a bug or a worker that does not read."""
_MAX_PARTS = 64


class ChannelClosedError(Exception):
    """The worker's end is gone, or the channel was given up."""


@dataclass(slots=True, eq=False)
class _Part:
    """Bytes to write; `descriptor` goes with the first of them. `keep` holds what the descriptor belongs to until it was sent."""

    data: memoryview
    descriptor: int | None = None
    keep: object = None


class FrameChannel:
    """Frames over a non-blocking socket, on the running event loop.

    Args:
        connection: this end; owned from now on.
        on_frame: called with each frame; may raise FrameError, which ends the channel.
        on_announced: called with kind, call id and length of a frame of which a part has come, before more is waited for; may raise
            FrameError as well. So nothing is held for a frame that will not count.
        on_closed: called once, when the channel ends other than by `close`: FrameError for a violation, OSError or None for an end of file.
        stall_seconds: how long a worker may take nothing while something waits for it.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        on_frame: Callable[[Frame], None],
        on_announced: Callable[[FrameKind, int, int], None],
        on_closed: Callable[[Exception | None], None],
        stall_seconds: float = 10.0,
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._on_frame = on_frame
        self._on_announced = on_announced
        self._on_closed = on_closed
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._unsent: deque[_Part] = deque()
        self._unsent_bytes = 0
        self._stall: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._room.set()
        self._writing = False
        """A writer is registered with the loop."""
        self._open = True
        # Callbacks that are registered while some call sends must not log under that call's ids.
        self._context = contextvars.copy_context()
        self._loop.add_reader(connection.fileno(), self._readable)

    @property
    def is_open(self) -> bool:
        """True until closed or given up."""
        return self._open

    async def send(
        self,
        kind: FrameKind,
        call_id: int,
        payload: bytes,
        *,
        body: memoryview | bytes | None = None,
        on_sending: Callable[[], None] | None = None,
    ) -> None:
        """Queue a frame, and a BODY frame after it where `body` is given, when there is room for it.

        `on_sending` is called when the frame's first byte may leave.

        Raises:
            ChannelClosedError: the channel has ended.
        """
        async with self._turn:
            await self._room.wait()
            self._require_open()
            if on_sending is not None:
                on_sending()
            self._queue_frames(kind, call_id, payload, body)
            self._flush()

    @property
    def is_free(self) -> bool:
        """True where `send_at_once` may be used: nobody waits for room, and there is some."""
        return self._open and self._room.is_set() and not self._turn.locked()

    def send_at_once(self, kind: FrameKind, call_id: int, payload: bytes, *, body: memoryview | bytes | None = None) -> None:
        """Do what `send` does, without waiting. Only where `is_free`."""
        self._require_open()
        self._queue_frames(kind, call_id, payload, body)
        self._flush()

    def _queue_frames(self, kind: FrameKind, call_id: int, payload: bytes, body: memoryview | bytes | None) -> None:
        self._queue(_Part(memoryview(encode_header(kind, call_id, len(payload)) + payload)))
        if body is not None:
            self._queue(_Part(memoryview(encode_header(FrameKind.BODY, call_id, len(body)))))
            self._queue(_Part(memoryview(body)))

    async def send_descriptor(self, kind: FrameKind, payload: bytes, *, descriptor: int, keep: object) -> None:
        """Queue a frame of no call with a descriptor; `keep` is held until the descriptor was sent.

        Raises:
            ChannelClosedError: the channel has ended.
        """
        async with self._turn:
            await self._room.wait()
            self._require_open()
            self._queue(_Part(memoryview(encode_header(kind, 0, len(payload)) + payload), descriptor, keep))
            self._flush()

    def send_now(self, kind: FrameKind, call_id: int) -> None:
        """Queue a frame without payload at once, whatever waits (CANCEL, DROP of 13 bytes). Does nothing where the channel has ended."""
        if self._open:
            self._queue(_Part(memoryview(encode_header(kind, call_id, 0))))
            self._flush()

    def close(self) -> None:
        """End the channel; the worker reads an end of file. `on_closed` is not called."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._cancel_stall()
        self._unsent.clear()
        self._unsent_bytes = 0
        self._room.set()
        self._socket.close()

    def _give_up(self, cause: Exception | None) -> None:
        if self._open:
            self.close()
            self._on_closed(cause)

    def _require_open(self) -> None:
        if not self._open:
            message = "the worker's channel is closed"
            raise ChannelClosedError(message)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._give_up(error)
            return
        if not data:
            self._give_up(None)
            return
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(frame)
                if not self._open:
                    return
            announced = self._decoder.announced
            if announced is not None:
                self._on_announced(*announced)
        except FrameError as error:
            self._give_up(error)

    def _queue(self, part: _Part) -> None:
        self._unsent.append(part)
        self._unsent_bytes += len(part.data)
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            self._give_up(FrameError(f"{self._unsent_bytes} bytes wait for a worker that does not read"))
        elif self._unsent_bytes > HIGH_WATER_BYTES:
            self._room.clear()

    def _flush(self) -> None:
        if not self._open:
            return
        try:
            while self._unsent:
                self._sent(self._write_some())
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket.fileno(), self._context.run, self._flush)
            self._writing = True
            if self._stall is None:
                self._stall = self._loop.call_later(self._stall_seconds, self._stalled, context=self._context)
            return
        except OSError as error:
            self._give_up(error)
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())
        self._cancel_stall()

    def _write_some(self) -> int:
        first = self._unsent[0]
        if first.descriptor is not None:
            sent = send_descriptor(self._socket, bytes(first.data), first.descriptor)
            # The kernel holds it now; the rest of the frame is ordinary bytes.
            first.descriptor = first.keep = None
            return sent
        if len(self._unsent) == 1:
            return self._socket.send(first.data)
        parts: list[memoryview] = []
        for part in self._unsent:
            if part.descriptor is not None or len(parts) == _MAX_PARTS:
                break
            parts.append(part.data)
        return self._socket.sendmsg(parts)

    def _sent(self, count: int) -> None:
        self._unsent_bytes -= count
        while self._unsent and count >= len(self._unsent[0].data):
            count -= len(self._unsent.popleft().data)
        if count:
            self._unsent[0].data = self._unsent[0].data[count:]
        self._cancel_stall()
        if self._unsent_bytes <= HIGH_WATER_BYTES:
            self._room.set()

    def _stalled(self) -> None:
        self._stall = None
        self._give_up(FrameError(f"the worker has taken nothing for {self._stall_seconds} seconds"))

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
