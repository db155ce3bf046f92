"""Host functions of the catalog as callbacks of the engine: lift the arguments, decide, answer, lower the result.

Deny by default: a function whose capability is not in force for the call answers its typed "denied" here, without a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runnerd.capabilities.catalog import HostFunction
from runnerd.engine import bindings, calls
from runnerd.engine.component_values import GuestSizeError, GuestTypeError, clear, is_large, lift, lower, lower_error, lower_ok
from runnerd.engine.outcomes import InternalError, LimitExceeded, LimitKind, TrapKind, Trapped

LOG_LEVELS = {"log-info": "info", "log-warn": "warn", "log-error": "error"}


def host_function(function: HostFunction) -> bindings.HostCallback:
    """Make the callback of one function of the catalog."""

    def callback(_context: Any, arguments: Any, argument_count: int, results: Any, result_count: int) -> None:
        def read() -> list[object]:
            if argument_count != len(function.params):
                message = f"{argument_count} arguments instead of {len(function.params)}"
                raise GuestTypeError(message)
            return [lift(shape, arguments[index]) for index, (_, shape) in enumerate(function.params)]

        def write(value: object, error: str | None) -> None:
            if result_count:
                clear(results[0])
                _lower_result(function, value, error, results[0])

        answer_guest(calls.current(), function, read, write)

    return callback


def answer_guest(
    call: calls.Call, function: HostFunction, read: Callable[[], list[object]], write: Callable[[object, str | None], None]
) -> None:
    """Answer one call of a host function: decide, read the arguments, answer, write the result.

    Raises:
        StopCallError: the guest must end; why is in the call's `stop`.
    """
    try:
        write(*_answer(call, function, read))
    except calls.StopCallError:
        raise
    except GuestTypeError as exc:
        call.end(Trapped(kind=TrapKind.ABI, message=f"{function.qualified_name} is imported with another type: {exc}"))
    except BaseException as exc:  # noqa: BLE001 - whatever it is, it is ours, and it must not reach the engine as success
        call.end(InternalError(message=f"{function.qualified_name} failed: {type(exc).__name__}"))


def unknown_function(name: str) -> bindings.HostCallback:
    """Make the callback of an import that nobody provides: a trap that names it."""

    def callback(_context: Any, _arguments: Any, _argument_count: int, _results: Any, _result_count: int) -> None:
        calls.current().end(Trapped(kind=TrapKind.UNKNOWN_IMPORT, message=f"the extension called {name}, which nobody provides"))

    return callback


_Answer = Callable[["calls.Call", HostFunction, list[object]], tuple[object, str | None]]


def _answer(call: calls.Call, function: HostFunction, read: Callable[[], list[object]]) -> tuple[object, str | None]:
    call.remaining_seconds()
    if not function.local:
        call.host_calls += 1
        if call.host_calls > call.limits.host_calls:
            call.end(LimitExceeded(limit=LimitKind.HOST_CALLS, used=call.host_calls, allowed=call.limits.host_calls))
    if function.capability not in call.capabilities:
        call.deny(function.capability)
        return _typed(function, function.denied)
    answer = _LOCAL.get(function.qualified_name, _ask) if function.local else _ask
    try:
        values = read()
        result = answer(call, function, values)
    except GuestSizeError:
        call.large_values = True
        return _typed(function, function.unacceptable)
    call.large_values |= is_large(values) or is_large(result)
    return result


def _typed(function: HostFunction, answer: object) -> tuple[object, str | None]:
    """Turn an answer of the catalog's (`denied`, `unacceptable`) into a value or an error case."""
    return (None, str(answer)) if function.error is not None else (answer, None)


def _ask(call: calls.Call, function: HostFunction, values: list[object]) -> tuple[object, str | None]:
    try:
        return call.port.call(function, values, timeout_seconds=call.remaining_seconds())
    except (TimeoutError, InterruptedError):
        # One of the two is why; each ends the call.
        call.remaining_seconds()
        raise


def _lower_result(function: HostFunction, value: object, error: str | None, target: Any) -> None:
    if error is not None and function.error is not None:
        lower_error(function.error, error, target)
    elif function.error is not None:
        lower_ok(function.result, value, target)
    elif function.result is not None:
        lower(function.result, value, target)


def _get_context(call: calls.Call, _function: HostFunction, _values: list[object]) -> tuple[object, str | None]:
    return call.context.as_value(), None


def _log(call: calls.Call, function: HostFunction, values: list[object]) -> tuple[object, str | None]:
    call.journal.write(LOG_LEVELS[function.name], str(values[0]).encode())
    return None, None


_LOCAL: dict[str, _Answer] = {
    "alga:extension/context.get-context": _get_context,
    "alga:extension/logging.log-info": _log,
    "alga:extension/logging.log-warn": _log,
    "alga:extension/logging.log-error": _log,
}
