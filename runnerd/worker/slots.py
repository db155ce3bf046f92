"""The threads of a worker: one call on each, as many at once as there are slots, and a budget for bodies.

No run token (N2): ctypes releases the interpreter, the kernel shares the processor, and a guest that computes for ever never holds up a
short one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

STACK_BYTES = 4 * 1024 * 1024
"""Of a slot's thread: 1 MiB of wasm, and the engine's and Python's own frames."""


class SlotPool:
    """Runs jobs on at most `slots` threads, made when they are first needed. One thread submits."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads = 0
        self._busy = 0
        self._lock = threading.Lock()

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` as soon as a slot is free. It must not raise."""
        with self._lock:
            self._busy += 1
            if self._busy > self._threads and self._threads < self._slots:
                self._threads += 1
                threading.Thread(target=self._serve, name=f"slot-{self._threads}", daemon=True).start()
        self._jobs.put(job)

    def _serve(self) -> None:
        while True:
            job = self._jobs.get()
            job()
            # Let go of the call's body before waiting for the next one.
            del job
            with self._lock:
                self._busy -= 1


class ByteBudget:
    """Bytes that may be in use at once, because each costs many times itself.

    What is larger than the whole budget waits until it is alone.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._changed = threading.Condition()

    def take(self, size: int, *, deadline: float) -> bool:
        """Wait for `size` bytes until monotonic time `deadline`; tell whether they were taken."""
        wanted = min(size, self._total)
        with self._changed:
            while self._free < wanted:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            self._free -= wanted
            return True

    def give_back(self, size: int) -> None:
        """Undo one `take` that succeeded."""
        with self._changed:
            self._free += min(size, self._total)
            self._changed.notify_all()
