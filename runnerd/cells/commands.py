"""What a process is told while it runs: to stop (a second time: without waiting), and to renew its workers.

A daemon alone, or the supervisor of cells, hears it as signals; a cell hears it from its supervisor.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_ORDERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Commands:
    """Orders that have arrived. Made in the task that they interrupt while it starts."""

    def __init__(self) -> None:
        self.stops: asyncio.Queue[None] = asyncio.Queue()
        self.hangup = asyncio.Event()
        self._starting: asyncio.Task[object] | None = asyncio.current_task()
        """The task that the first order to stop cancels, until it serves."""
        self.interrupted = False

    def serving(self) -> None:
        """Say that the task serves: from now on an order to stop waits in `stops`, for it to stop in its own way."""
        self._starting = None

    def stop(self) -> None:
        """Take the order to stop."""
        if self._starting is None:
            self.stops.put_nowait(None)
        elif not self.interrupted:
            # Once only: what has started must be able to stop.
            self.interrupted = True
            self._starting.cancel()

    @contextmanager
    def from_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as the order to stop, SIGHUP as the order to renew."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.hangup.set)
        try:
            yield
        finally:
            for number in _ORDERS:
                loop.remove_signal_handler(number)


def ignore_signals() -> None:
    """Leave signals to the supervisor: a service manager sends them to every process of the group."""
    for number in _ORDERS:
        signal.signal(number, signal.SIG_IGN)
