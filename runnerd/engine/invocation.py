"""Runs one call: a fresh Store with its limits, an instance, `handler`, and the outcome. The Store is dropped whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import wasmtime
from wasmtime import component

from runnerd.capabilities.catalog import EXECUTE_REQUEST, EXECUTE_RESPONSE
from runnerd.engine import bindings, bridge, calls
from runnerd.engine.answers import GuestAnswer, check_answer
from runnerd.engine.component_values import GuestSizeError, GuestTypeError, is_large, lift, lower
from runnerd.engine.engine import Ticker
from runnerd.engine.limits import ORDINARY_PATH_BYTES, TouchedMemory, apply_limits
from runnerd.engine.linker import build_linker
from runnerd.engine.outcomes import (
    Figures,
    GuestError,
    InternalError,
    LimitExceeded,
    LimitKind,
    Outcome,
    TrapKind,
    Trapped,
    classify_instantiation,
    classify_trap,
)
from runnerd.engine.profile import MAX_TABLE_ELEMENTS

HANDLER = "handler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a call ended and what it used."""

    outcome: Outcome
    fuel: int
    cpu_seconds: float
    wall_seconds: float
    peak_memory_bytes: int | None
    """Of the author's linear memory. Exact where the bridge ran and the guest returned; else an estimate from page faults, or None."""


class LoadedComponent:
    """A component ready to run: mapped code and its linker. Safe from many threads.

    Args:
        engine: the process's engine.
        compiled: deserialised by this engine.
        memories: linear memories of one instance of the author's component, counted before compiling.
        bridged: whether it was composed with the bridge. From the signed artifact record, never from what it exports (T35).
        fuel_on: whether the engine counts fuel.

    Raises:
        UnlinkableError: it imports what a host cannot provide.
        GuestTypeError: it does not export what is called.
    """

    def __init__(
        self, engine: wasmtime.Engine, compiled: component.Component, *, memories: int, bridged: bool, fuel_on: bool = True
    ) -> None:
        name = bridge.RUN if bridged else HANDLER
        entry = compiled.get_export_index(name)
        if entry is None:
            message = f"the component does not export {name}"
            raise GuestTypeError(message)
        self.engine = engine
        self.compiled = compiled
        self.memories = memories
        self.bridged = bridged
        self.bridge_memories = bridge.count_memories(engine, compiled) if bridged else 0
        self.fuel_on = fuel_on
        self.entry = entry
        self.linker = build_linker(engine, compiled, bridged=bridged)


def prepare_process() -> None:
    """Set what every store of this process asks at its epoch deadline. Once, before the first call."""
    bindings.install_epoch_callback(lambda: calls.current().check())


def run_call(loaded: LoadedComponent, call: calls.Call, request: calls.GuestRequest, ticker: Ticker) -> Finished:
    """Run one call on this thread to its end. Never raises: what goes wrong with us is an `InternalError`."""
    touched = TouchedMemory()
    call.enter()
    calls.set_current(call)
    ticker.call_started()
    store = wasmtime.Store(loaded.engine)
    try:
        outcome = _run(store, loaded, call, request, touched)
    except calls.StopCallError:
        outcome = call.stop or InternalError(message="the call was stopped without a reason")
    except Exception as exc:  # noqa: BLE001 - one call's failure must not end the thread that runs others
        outcome = InternalError(message=f"the call failed in the worker: {type(exc).__name__}")
    finally:
        fuel = _fuel_used(store, loaded, call)
        peak = min(touched.bytes(), call.limits.memory_bytes)
        # After a trap a store must not be used again; after a success it is dropped as well (principle 6).
        store.close()
        call.resources.clear()
        ticker.call_ended()
        calls.set_current(None)
    now = time.monotonic()
    if now >= call.deadline and not isinstance(outcome, LimitExceeded | InternalError):
        # An answer after the deadline is none (T12).
        outcome = call.wall_time_exceeded(now)
    return Finished(
        outcome=outcome,
        fuel=fuel,
        cpu_seconds=call.cpu_seconds(),
        wall_seconds=now - call.started,
        peak_memory_bytes=_peak(loaded, call, peak),
    )


def _run(store: wasmtime.Store, loaded: LoadedComponent, call: calls.Call, request: calls.GuestRequest, touched: TouchedMemory) -> Outcome:
    if not loaded.bridged:
        call.limits = call.limits.on_the_ordinary_path()
    apply_limits(store, call.limits, memories=loaded.memories, bridge_memories=loaded.bridge_memories, fuel_on=loaded.fuel_on)
    bindings.ask_at_epoch(store)
    # First, so that a call whose time passed in the queue never starts.
    store.set_epoch_deadline(call.check())
    instance, error = bindings.instantiate(loaded.linker, store, loaded.compiled)
    if instance is None:
        return call.stop or classify_instantiation(error, _figures(store, loaded, call, touched))
    entry = instance.get_func(store, loaded.entry)
    if entry is None:
        return Trapped(kind=TrapKind.INSTANTIATION, message="handler is not a function")
    call.large_values = is_large(request.body)
    arguments, result = bindings.new_values(2 if loaded.bridged else 1), bindings.Value()
    enter = _enter_bridge if loaded.bridged else _enter_handler
    try:
        read = enter(loaded, call, request, arguments)
        trap = bindings.call_function(store, entry, arguments, result)
        if trap is not None:
            return call.stop or classify_trap(trap, _figures(store, loaded, call, touched))
        return _checked(read, result, call)
    finally:
        bindings.delete_values(arguments)
        bindings.delete_value(result)


_Read = Callable[[bindings.Value], GuestAnswer]


def _enter_bridge(loaded: LoadedComponent, call: calls.Call, request: calls.GuestRequest, arguments: Any) -> _Read:
    """Write the arguments of `run`; return how its result is read."""
    base = bridge.write_request(call, request, *arguments, memory_cap=call.limits.memory_cap(max(loaded.memories, 1)))

    def read(result: bindings.Value) -> GuestAnswer:
        answer, call.peak_memory_bytes = bridge.read_answer(result, base)
        return answer

    return read


def _enter_handler(_loaded: LoadedComponent, call: calls.Call, request: calls.GuestRequest, arguments: Any) -> _Read:
    """Write the argument of `handler`, value by value; return how its result is read."""
    headers = [{"name": name, "value": value} for name, value in request.headers]
    http = {"method": request.method, "url": request.url, "headers": headers, "body": request.body}
    lower(EXECUTE_REQUEST, {"context": call.context.as_value(), "http": http}, arguments[0])
    return _lifted


def _lifted(result: bindings.Value) -> GuestAnswer:
    answer = cast("dict[str, Any]", lift(EXECUTE_RESPONSE, result))
    headers = [(header["name"], header["value"]) for header in answer["headers"]]
    return GuestAnswer(answer["status"], headers, answer["body"])


def _checked(read: _Read, result: bindings.Value, call: calls.Call) -> Outcome:
    allowed = call.limits.response_bytes
    try:
        answer = read(result)
    except GuestSizeError:
        return LimitExceeded(limit=LimitKind.RESPONSE_SIZE, used=allowed + 1, allowed=allowed)
    except GuestTypeError:
        return GuestError(message="handler does not return an execute-response")
    call.large_values |= is_large(answer.body)
    return check_answer(answer, response_bytes=allowed)


def _peak(loaded: LoadedComponent, call: calls.Call, estimate: int) -> int | None:
    if call.peak_memory_bytes is not None or loaded.bridged:
        return call.peak_memory_bytes
    return None if call.large_values else estimate


def _fuel_used(store: wasmtime.Store, loaded: LoadedComponent, call: calls.Call) -> int:
    return max(0, call.limits.fuel - store.get_fuel()) if loaded.fuel_on else 0


def _figures(store: wasmtime.Store, loaded: LoadedComponent, call: calls.Call, touched: TouchedMemory) -> Figures:
    return Figures(
        fuel_used=_fuel_used(store, loaded, call),
        fuel_allowed=call.limits.fuel,
        memory_cap=call.limits.memory_cap(max(loaded.memories, 1)),
        memory_allowed=call.limits.memory_bytes,
        memory_touched=0 if call.large_values else touched.bytes(),
        carried=call.limits.response_bytes if loaded.bridged else ORDINARY_PATH_BYTES,
        table_elements_allowed=MAX_TABLE_ELEMENTS,
    )
