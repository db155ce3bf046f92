"""Builds the one Engine of a process, and the ticker that drives its epochs.

Fuel, epochs, pooling, a bounded wasm stack, and every feature off that extensions do not need: an engine's features are its attack surface
(RUNTIME §4.10).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import wasmtime

from runnerd.engine import bindings
from runnerd.engine.profile import DEFAULT_PROFILE, MAX_TICKS_AHEAD, MAX_WASM_STACK_BYTES, TICK_SECONDS, EngineProfile, PoolSizes


def build_engine(profile: EngineProfile, pool: PoolSizes) -> wasmtime.Engine:
    """Build an engine. In a worker this comes after the fork: an engine does not survive one (RUNTIME §4.6).

    Cost: reserves about 4 GiB of address space for each memory of `pool`; no memory.
    """
    config = wasmtime.Config()
    config.wasm_component_model = True
    config.consume_fuel = profile.fuel
    config.epoch_interruption = True
    config.memory_init_cow = True
    config.max_wasm_stack = MAX_WASM_STACK_BYTES
    # The names of FEATURES_OFF in profile.py, in its order.
    config.wasm_threads = False
    config.shared_memory = False
    config.wasm_memory64 = False
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_exceptions = False
    config.wasm_relaxed_simd = False
    config.wasm_tail_call = False
    config.wasm_wide_arithmetic = False
    config.wasm_custom_page_sizes = False
    config.wasm_stack_switching = False
    bindings.disable_component_async(config)
    config.wasm_component_model_map = False
    config.wasm_component_model_implements = False
    bindings.use_pooling(config, pool)
    return wasmtime.Engine(config)


def build_compile_engine(profile: EngineProfile = DEFAULT_PROFILE) -> wasmtime.Engine:
    """Build an engine that compiles for `build_engine`'s with the same profile, with a pool for one instance."""
    return build_engine(profile, PoolSizes.for_slots(0))


class Ticker:
    """Advances an engine's epoch with the monotonic clock.

    It advances by elapsed time ÷ tick, not once for each wake-up: a naive ticker falls 20 % behind with four busy guests (N15). While no
    call runs it sleeps, so that an idle worker costs nothing.

    Epochs only say when a guest meets its host; whether its time is up is decided there, against the monotonic clock.
    """

    def __init__(self, engine: wasmtime.Engine, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._monotonic = monotonic
        self._running = 0
        self._awake = threading.Condition()
        self.late_seconds = 0.0
        """The longest time that a wake-up came after its tick."""

    def start(self) -> None:
        """Start the thread; it ends with the process."""
        threading.Thread(target=self._run, name="ticker", daemon=True).start()

    def call_started(self) -> None:
        """Keep ticking until the matching `call_ended`."""
        with self._awake:
            self._running += 1
            if self._running == 1:
                self._awake.notify()

    def call_ended(self) -> None:
        """Undo one `call_started`."""
        with self._awake:
            self._running -= 1

    def hurry(self) -> None:
        """Make every running guest meet its host at once, whatever its deadline. Any thread."""
        self._advance(MAX_TICKS_AHEAD + 1)

    def _advance(self, ticks: int) -> None:
        for _ in range(ticks):
            self._engine.increment_epoch()

    def _run(self) -> None:
        while True:
            with self._awake:
                while not self._running:
                    self._awake.wait()
            self._tick_while_running()

    def _tick_while_running(self) -> None:
        due = self._monotonic()
        while self._running:
            time.sleep(TICK_SECONDS)
            elapsed = int((self._monotonic() - due) / TICK_SECONDS)
            if elapsed > 0:
                due += elapsed * TICK_SECONDS
                self.late_seconds = max(self.late_seconds, (elapsed - 1) * TICK_SECONDS)
                # A process that was stopped for an hour need not count it out.
                self._advance(min(elapsed, MAX_TICKS_AHEAD + 1))
