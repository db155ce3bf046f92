"""Runs one call: a fresh Store with its limits, an instance, `handler`, and the outcome. The Store is dropped whatever happens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import wasmtime
from wasmtime import component

from runnerd.capabilities.catalog import EXECUTE_REQUEST, EXECUTE_RESPONSE
from runnerd.engine import bindings, calls
from runnerd.engine.answers import check_answer
from runnerd.engine.component_values import GuestSizeError, GuestTypeError, is_large, lift, lower
from runnerd.engine.engine import Ticker
from runnerd.engine.limits import TouchedMemory, apply_limits
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
class GuestRequest:
    """The request for a guest, as validated by the daemon."""

    method: str
    url: str
    headers: Sequence[tuple[str, str]]
    body: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a call ended and what it used."""

    outcome: Outcome
    fuel: int
    cpu_seconds: float
    wall_seconds: float
    peak_memory_bytes: int | None
    """An estimate from page faults; None where large values drown it."""


class LoadedComponent:
    """A component ready to run: mapped code and its linker. Safe from many threads.

    Args:
        engine: the process's engine.
        compiled: deserialised by this engine.
        memories: linear memories of one instance, counted before compiling.
        fuel_on: whether the engine counts fuel.

    Raises:
        UnlinkableError: it imports what a host cannot provide.
        GuestTypeError: it does not export `handler`.
    """

    def __init__(self, engine: wasmtime.Engine, compiled: component.Component, *, memories: int, fuel_on: bool = True) -> None:
        handler = compiled.get_export_index(HANDLER)
        if handler is None:
            message = "the component does not export handler"
            raise GuestTypeError(message)
        self.engine = engine
        self.compiled = compiled
        self.memories = memories
        self.fuel_on = fuel_on
        self.handler = handler
        self.linker = build_linker(engine, compiled)


def prepare_process() -> None:
    """Set what every store of this process asks at its epoch deadline. Once, before the first call."""
    bindings.install_epoch_callback(lambda: calls.current().check())


def run_call(loaded: LoadedComponent, call: calls.Call, request: GuestRequest, ticker: Ticker) -> Finished:
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
        peak_memory_bytes=None if call.large_values else peak,
    )


def _run(store: wasmtime.Store, loaded: LoadedComponent, call: calls.Call, request: GuestRequest, touched: TouchedMemory) -> Outcome:
    apply_limits(store, call.limits, memories=loaded.memories, fuel_on=loaded.fuel_on)
    bindings.ask_at_epoch(store)
    # First, so that a call whose time passed in the queue never starts.
    store.set_epoch_deadline(call.check())
    instance, error = bindings.instantiate(loaded.linker, store, loaded.compiled)
    if instance is None:
        return call.stop or classify_instantiation(error, _figures(store, loaded, call, touched))
    function = instance.get_func(store, loaded.handler)
    if function is None:
        return Trapped(kind=TrapKind.INSTANTIATION, message="handler is not a function")
    call.large_values = is_large(request.body)
    argument, result = bindings.Value(), bindings.Value()
    try:
        lower(EXECUTE_REQUEST, {"context": call.context.as_value(), "http": _http_request(request)}, argument)
        trap = bindings.call_function(store, function, argument, result)
        if trap is not None:
            return call.stop or classify_trap(trap, _figures(store, loaded, call, touched))
        return _answer_of(result, call)
    finally:
        bindings.delete_value(argument)
        bindings.delete_value(result)


def _http_request(request: GuestRequest) -> dict[str, object]:
    headers = [{"name": name, "value": value} for name, value in request.headers]
    return {"method": request.method, "url": request.url, "headers": headers, "body": request.body}


def _answer_of(result: bindings.Value, call: calls.Call) -> Outcome:
    try:
        answer = lift(EXECUTE_RESPONSE, result)
    except GuestSizeError:
        allowed = call.limits.response_bytes
        return LimitExceeded(limit=LimitKind.RESPONSE_SIZE, used=allowed + 1, allowed=allowed)
    except GuestTypeError:
        return GuestError(message="handler does not return an execute-response")
    call.large_values |= is_large(answer)
    if not isinstance(answer, dict):
        return GuestError(message="handler does not return an execute-response")
    return check_answer(answer, response_bytes=call.limits.response_bytes)


def _fuel_used(store: wasmtime.Store, loaded: LoadedComponent, call: calls.Call) -> int:
    return max(0, call.limits.fuel - store.get_fuel()) if loaded.fuel_on else 0


def _figures(store: wasmtime.Store, loaded: LoadedComponent, call: calls.Call, touched: TouchedMemory) -> Figures:
    return Figures(
        fuel_used=_fuel_used(store, loaded, call),
        fuel_allowed=call.limits.fuel,
        memory_cap=call.limits.memory_cap(max(loaded.memories, 1)),
        memory_allowed=call.limits.memory_bytes,
        memory_touched=0 if call.large_values else touched.bytes(),
        response_allowed=call.limits.response_bytes,
        table_elements_allowed=MAX_TABLE_ELEMENTS,
    )
