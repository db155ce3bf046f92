"""The log of one call: lines of the guest's logging calls and of its stdout and stderr, within bounds.

Lines go on in batches (N23): at 4 KiB, 50 ms after the first, or at the end of the call, so that a killed call's last words are kept. What
a stream got without a line break goes on as it is when nothing has followed for a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from runnerd.engine.limits import MAX_LINE_BYTES

BATCH_BYTES = 4 * 1024
BATCH_SECONDS = 0.05
UNFINISHED_SECONDS = 1.0
"""Long enough that a guest which writes text and line break apart keeps its lines whole."""
STREAMS = ("stdout", "stderr")
_BOUNDARY = 4
"""Bytes of the longest character."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line."""

    level: str
    """"info", "warn", "error", "stdout" or "stderr"."""
    message: str
    truncated: bool
    offset_us: int
    """Since the call started."""


def cut_utf8(data: bytes, max_bytes: int) -> tuple[str, bool]:
    """Decode at most `max_bytes` of UTF-8, cut on a character; tell whether anything was cut. Invalid bytes become U+FFFD."""
    # An invalid byte becomes three bytes, so the length is measured after that; what cannot matter is not decoded at all.
    text = data[: max_bytes + 4].decode("utf-8", errors="replace")
    data = text.encode()
    if len(data) <= max_bytes:
        return text, False
    return data[: _boundary(data, max_bytes)].decode(), True


def _boundary(data: bytes, end: int) -> int:
    """Return where to cut `data` at or just before `end` without cutting a character; `end` is within it."""
    at = end
    # Step back over the continuation bytes of a character that would be cut; one has at most three.
    while at > max(0, end - _BOUNDARY) and data[at] & 0xC0 == 0x80:  # noqa: PLR2004 - the form of a continuation byte
        at -= 1
    # More of them are no character at all.
    return at if data[at] & 0xC0 != 0x80 else end  # noqa: PLR2004


class Journal:
    """Collects lines and hands them to `deliver` in batches. Safe from many threads.

    Args:
        deliver: gets each batch, in order; one call at a time.
        max_lines: of the whole call; what comes after is counted, not kept.
        max_bytes: of text, of the whole call.
    """

    def __init__(self, deliver: Callable[[list[LogLine]], None], *, max_lines: int, max_bytes: int) -> None:
        self._deliver = deliver
        self._lines_left = max_lines
        self._bytes_left = max_bytes
        self._started = time.monotonic()
        self._batch: list[LogLine] = []
        self._batch_bytes = 0
        self._batch_since = 0.0
        self._partial: dict[str, bytearray] = {level: bytearray() for level in STREAMS}
        self._partial_since = 0.0
        self._lock = threading.Lock()
        self.dropped = 0
        """Lines that the limits kept out."""

    def write(self, level: str, message: bytes) -> None:
        """Add one line. A line break in it stays; what is too long is cut and marked."""
        with self._lock:
            self._add(level, message)

    def stream(self, level: str, data: bytes) -> None:
        """Add bytes of one of `STREAMS`; whole lines are kept as lines."""
        with self._lock:
            pending = self._partial[level]
            pending += data
            *lines, rest = bytes(pending).split(b"\n")
            # A line that never ends is cut into pieces, so that nothing unbounded is held.
            while len(rest) > MAX_LINE_BYTES:
                end = _boundary(rest, MAX_LINE_BYTES)
                lines.append(rest[:end])
                rest = rest[end:]
            pending[:] = rest
            self._partial_since = time.monotonic()
            for line in lines:
                self._add(level, line.removesuffix(b"\r"))

    def overdue(self, now: float) -> bool:
        """Tell whether a batch has waited for `BATCH_SECONDS`, or an unfinished line for its time, at monotonic time `now`."""
        return (bool(self._batch) and now - self._batch_since >= BATCH_SECONDS) or self._has_stale_line(now)

    def flush(self, now: float) -> None:
        """Hand over what is collected, unfinished lines too where nothing has followed for long at monotonic time `now`."""
        with self._lock:
            if self._has_stale_line(now):
                self._finish_lines()
            self._flush()

    def close(self) -> None:
        """Hand over everything, unfinished lines of the streams too."""
        with self._lock:
            self._finish_lines()
            self._flush()

    def _has_stale_line(self, now: float) -> bool:
        return now - self._partial_since >= UNFINISHED_SECONDS and any(self._partial.values())

    def _finish_lines(self) -> None:
        for level, rest in self._partial.items():
            if rest:
                self._add(level, bytes(rest))
                rest.clear()

    def _add(self, level: str, message: bytes) -> None:
        if self._lines_left <= 0 or self._bytes_left <= 0:
            self.dropped += 1
            return
        text, truncated = cut_utf8(message, min(MAX_LINE_BYTES, self._bytes_left))
        size = len(text.encode())
        self._lines_left -= 1
        self._bytes_left -= size
        now = time.monotonic()
        if not self._batch:
            self._batch_since = now
        self._batch.append(
            LogLine(level=level, message=text, truncated=truncated, offset_us=max(0, int((now - self._started) * 1_000_000)))
        )
        self._batch_bytes += size
        if self._batch_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            self._deliver(batch)
