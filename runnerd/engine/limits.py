"""The limits of one call in a worker, and how they reach a store.

The daemon has clamped them already (`registry.domain.limits`); the worker's own maxima are the second wall, for a daemon's mistake.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace

import wasmtime

from runnerd.engine.profile import (
    BRIDGE_CORE_INSTANCES,
    MAX_CORE_INSTANCES,
    MAX_MEMORIES,
    MAX_MEMORY_BYTES,
    MAX_TABLE_ELEMENTS,
    MAX_TABLES,
)

MAX_RESPONSE_BYTES = 32 * 1024 * 1024
"""Of a response's body: the operator's ceiling (DESIGN §7)."""
ORDINARY_PATH_BYTES = 2 * 1024 * 1024
"""What leaves a guest in one value on the ordinary call path: above 2.66 MiB the engine itself ends the call (N4)."""
MAX_WALL_SECONDS = 30.0
MAX_HOST_CALLS = 10_000
MAX_LOG_LINES = 1_024
MAX_LOG_BYTES = 256 * 1024
MAX_LINE_BYTES = 8 * 1024
_WASM_PAGE_BYTES = 64 * 1024
_SYSTEM_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, slots=True, kw_only=True)
class InvocationLimits:
    """What one call may use."""

    wall_seconds: float
    cpu_seconds: float
    fuel: int
    memory_bytes: int
    """All linear memories together."""
    response_bytes: int
    host_calls: int
    log_lines: int
    log_bytes: int

    def bounded(self) -> InvocationLimits:
        """Return these limits, none above the worker's own maximum."""
        return InvocationLimits(
            wall_seconds=min(self.wall_seconds, MAX_WALL_SECONDS),
            cpu_seconds=min(self.cpu_seconds, MAX_WALL_SECONDS),
            fuel=self.fuel,
            memory_bytes=min(self.memory_bytes, MAX_MEMORY_BYTES),
            response_bytes=min(self.response_bytes, MAX_RESPONSE_BYTES),
            host_calls=min(self.host_calls, MAX_HOST_CALLS),
            log_lines=min(self.log_lines, MAX_LOG_LINES),
            log_bytes=min(self.log_bytes, MAX_LOG_BYTES),
        )

    def on_the_ordinary_path(self) -> InvocationLimits:
        """Return these limits with what that path cannot carry taken off."""
        return replace(self, response_bytes=min(self.response_bytes, ORDINARY_PATH_BYTES))

    def memory_cap(self, memories: int) -> int:
        """Return the cap of each of a component's memories: the C API limits per memory, so the sum is kept by division (N14)."""
        return self.memory_bytes // memories // _WASM_PAGE_BYTES * _WASM_PAGE_BYTES


def apply_limits(store: wasmtime.Store, limits: InvocationLimits, *, memories: int, bridge_memories: int, fuel_on: bool) -> None:
    """Give a fresh store its limits.

    Args:
        store: the call's own.
        limits: bounded.
        memories: linear memories that the component makes, counted before compiling. A component that makes more does not instantiate.
        bridge_memories: those of the bridge around it, 0 where there is none; they have the same cap each and are not part of the sum.
        fuel_on: whether the engine counts fuel.
    """
    counted = min(max(memories, 1), MAX_MEMORIES)
    store.set_limits(
        memory_size=limits.memory_cap(counted),
        table_elements=MAX_TABLE_ELEMENTS,
        instances=MAX_CORE_INSTANCES + (BRIDGE_CORE_INSTANCES if bridge_memories else 0),
        tables=MAX_TABLES,
        memories=counted + bridge_memories,
    )
    if fuel_on:
        store.set_fuel(limits.fuel)


class TouchedMemory:
    """Estimates how much memory a call has touched, from the page faults of its thread.

    Nothing in the C API tells a component's memory. A fresh instance's pages are touched first by the guest, each with a fault, so faults ×
    page size is close to what it grew to and used; pages that the pool keeps resident (1 MiB) do not show, bodies on their way in do.
    """

    __slots__ = ("_start",)

    def __init__(self) -> None:
        self._start = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

    def bytes(self) -> int:
        """Return the estimate. Only on the thread that made this object."""
        return (resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - self._start) * _SYSTEM_PAGE_BYTES
