"""WASI preview 2 as extensions get it: every function is our own, bounded, or a trap. None of wasmtime's is linked.

The attacks it stops: a guest that sleeps sits in `wasi:io/poll`, which neither epoch nor fuel reaches, and outlives its deadline by hours
(T12, N3); stock `wasi:http` and sockets are unrestricted egress; `get-random-bytes(300 MB)` becomes 10 GB of values; stdout callbacks of
wasmtime's arrive on a thread of another runtime. Here a wait is a wait of the call: at most until its deadline, ended by a cancel.

The world of a guest: no files, no preopens, no environment, no arguments, no network; stdin is at its end; stdout and stderr go to the
call's log; clocks of 100 µs; randomness from the kernel. Functions that could only act on what a guest cannot have (an open file, a socket)
are not here: the linker makes traps of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from runnerd.capabilities.shapes import TEXT, U32, U64, Data, Enum, ListOf, Record, TupleOf
from runnerd.engine import bindings as b
from runnerd.engine import calls
from runnerd.engine.component_values import GuestTypeError, clear, lift, lower, lower_error, lower_ok
from runnerd.engine.outcomes import TrapKind, Trapped
from runnerd.engine.resources import TypeIds, new_resource, own, take

NANOSECONDS = 1_000_000_000
CLOCK_RESOLUTION_NS = 100_000
"""Coarse, because a fine clock measures a neighbour's caches (T41)."""
MAX_RANDOM_BYTES = 64 * 1024
MAX_POLLABLES = 64
STREAM_WINDOW_BYTES = 4096
"""What a stream says it takes at once; larger writes come in pieces."""
_MAX_WRITE_BYTES = 64 * 1024

_DATETIME = Record("datetime", (("seconds", U64), ("nanoseconds", U32)))
_PAIRS = ListOf(TupleOf((TEXT, TEXT)))
_TEXTS = ListOf(TEXT)
_DIRECTORIES = ListOf(TupleOf((U32, TEXT)))
"""Always empty, so the type of its items does not matter."""
_ERROR_CODE = Enum("error-code", ("access-denied",))
_RANDOM = Data(MAX_RANDOM_BYTES)
_WRITTEN = Data(_MAX_WRITE_BYTES)


@dataclass(frozen=True, slots=True)
class Pollable:
    """Something to wait for: a moment on the monotonic clock. Streams are always ready."""

    ready_at: float


@dataclass(frozen=True, slots=True)
class OutputStream:
    """stdout or stderr."""

    level: str


@dataclass(frozen=True, slots=True)
class Inert:
    """A resource that can only be passed around: stdin, a network, an error."""


@dataclass(frozen=True, slots=True)
class Guest:
    """What a WASI function gets: the call, its arguments, and where its result goes."""

    call: calls.Call
    context: Any
    types: TypeIds
    arguments: Any
    result: Any

    def number(self, index: int) -> int:
        """Return an argument of type u64."""
        value = lift(U64, self.arguments[index])
        if not isinstance(value, int):
            raise GuestTypeError
        return value

    def lent(self, value: Any, resource_type: str) -> object:
        """Return the object behind a borrowed resource. Every borrowed argument must be taken, or the engine ends the guest."""
        return take(self.call, self.context, self.types, value, resource_type)

    def give(self, resource_type: str, thing: object) -> None:
        """Answer with a new resource."""
        own(self.context, self.types, resource_type, new_resource(self.call, thing), self.result)


_Function = Callable[[Guest], None]


def wasi_function(implementation: _Function, types: TypeIds) -> b.HostCallback:
    """Make the callback of one function."""

    def callback(context: Any, arguments: Any, _argument_count: int, results: Any, result_count: int) -> None:
        call = calls.current()
        try:
            call.remaining_seconds()
            result = results[0] if result_count else None
            if result is not None:
                clear(result)
            implementation(Guest(call, context, types, arguments, result))
        except calls.StopCallError:
            raise
        except BaseException as exc:  # noqa: BLE001 - a guest broke a rule, or we did; either way it ends here
            call.end(Trapped(kind=TrapKind.ABI, message=f"a WASI call failed: {type(exc).__name__}"))

    return callback


# --- clocks and waiting ----------------------------------------------------------------------------------------------------------------


def _monotonic_now(guest: Guest) -> None:
    now = time.monotonic_ns()
    lower(U64, now - now % CLOCK_RESOLUTION_NS, guest.result)


def _resolution(guest: Guest) -> None:
    lower(U64, CLOCK_RESOLUTION_NS, guest.result)


def _wall_now(guest: Guest) -> None:
    now = time.time_ns()
    now -= now % CLOCK_RESOLUTION_NS
    lower(_DATETIME, {"seconds": now // NANOSECONDS, "nanoseconds": now % NANOSECONDS}, guest.result)


def _wall_resolution(guest: Guest) -> None:
    lower(_DATETIME, {"seconds": 0, "nanoseconds": CLOCK_RESOLUTION_NS}, guest.result)


def _subscribe_duration(guest: Guest) -> None:
    guest.give("pollable", Pollable(time.monotonic() + guest.number(0) / NANOSECONDS))


def _subscribe_instant(guest: Guest) -> None:
    guest.give("pollable", Pollable(guest.number(0) / NANOSECONDS))


def _pollable(guest: Guest, value: Any) -> Pollable:
    thing = guest.lent(value, "pollable")
    if not isinstance(thing, Pollable):
        raise GuestTypeError
    return thing


def _block(guest: Guest) -> None:
    guest.call.wait(_pollable(guest, guest.arguments[0]).ready_at - time.monotonic())


def _ready(guest: Guest) -> None:
    guest.result.of.boolean = _pollable(guest, guest.arguments[0]).ready_at <= time.monotonic()
    guest.result.kind = b.KIND_BOOL


def _poll(guest: Guest) -> None:
    listed = guest.arguments[0]
    if listed.kind != b.KIND_LIST or not 0 < listed.of.list.size <= MAX_POLLABLES:
        message = "poll takes 1 to 64 pollables"
        raise GuestTypeError(message)
    moments = [_pollable(guest, listed.of.list.data[index]).ready_at for index in range(listed.of.list.size)]
    guest.call.wait(min(moments) - time.monotonic())
    now = time.monotonic()
    lower(ListOf(U32), [index for index, moment in enumerate(moments) if moment <= now], guest.result)


# --- streams ---------------------------------------------------------------------------------------------------------------------------


def _read(guest: Guest) -> None:
    """Answer result<…, stream-error> with `closed`: stdin is at its end."""
    guest.lent(guest.arguments[0], "input-stream")
    error = b.Value()
    b.set_name(error.of.variant.discriminant, b"closed")
    error.kind = b.KIND_VARIANT
    guest.result.of.result.is_ok = False
    guest.result.of.result.val = b.boxed(error)
    guest.result.kind = b.KIND_RESULT


def _output(guest: Guest) -> OutputStream:
    stream = guest.lent(guest.arguments[0], "output-stream")
    if not isinstance(stream, OutputStream):
        raise GuestTypeError
    return stream


def _check_write(guest: Guest) -> None:
    _output(guest)
    lower_ok(U64, STREAM_WINDOW_BYTES, guest.result)


def _write(guest: Guest) -> None:
    stream = _output(guest)
    guest.call.journal.stream(stream.level, _bytes(lift(_WRITTEN, guest.arguments[1])))
    lower_ok(None, None, guest.result)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise GuestTypeError
    return value


def _flush(guest: Guest) -> None:
    _output(guest)
    lower_ok(None, None, guest.result)


def _subscribe(stream_type: str) -> _Function:
    def subscribe(guest: Guest) -> None:
        guest.lent(guest.arguments[0], stream_type)
        guest.give("pollable", Pollable(0.0))

    return subscribe


def _stream_getter(level: str) -> _Function:
    return lambda guest: guest.give("output-stream", OutputStream(level))


# --- the rest --------------------------------------------------------------------------------------------------------------------------


def _random_bytes(guest: Guest) -> None:
    size = guest.number(0)
    if size > MAX_RANDOM_BYTES:
        guest.call.end(Trapped(kind=TrapKind.OTHER, message=f"at most {MAX_RANDOM_BYTES} random bytes can be asked for at once"))
    lower(_RANDOM, os.urandom(size), guest.result)


def _random_u64(guest: Guest) -> None:
    lower(U64, int.from_bytes(os.urandom(8), "big"), guest.result)


def _insecure_seed(guest: Guest) -> None:
    lower(TupleOf((U64, U64)), tuple(int.from_bytes(os.urandom(8), "big") for _ in range(2)), guest.result)


def _exit(guest: Guest) -> None:
    status = guest.arguments[0]
    code = 0 if status.kind == b.KIND_RESULT and status.of.result.is_ok else 1
    guest.call.end(Trapped(kind=TrapKind.EXIT, message=f"the extension ended itself (exit status {code})"))


def _exit_with_code(guest: Guest) -> None:
    code = guest.arguments[0].of.u8 if guest.arguments[0].kind == b.KIND_U8 else 1
    guest.call.end(Trapped(kind=TrapKind.EXIT, message=f"the extension ended itself (exit status {code})"))


def _none(guest: Guest) -> None:
    guest.result.of.option = None
    guest.result.kind = b.KIND_OPTION


def _empty(shape: ListOf) -> _Function:
    return lambda guest: lower(shape, [], guest.result)


def _inert(resource_type: str) -> _Function:
    return lambda guest: guest.give(resource_type, Inert())


def _access_denied(guest: Guest) -> None:
    lower_error(_ERROR_CODE, "access-denied", guest.result)


def _resolve_addresses(guest: Guest) -> None:
    guest.lent(guest.arguments[0], "network")
    _access_denied(guest)


def _error_code(guest: Guest) -> None:
    guest.lent(guest.arguments[0], "error")
    _none(guest)


def _debug_string(guest: Guest) -> None:
    guest.lent(guest.arguments[0], "error")
    lower(TEXT, "closed", guest.result)


FUNCTIONS: Mapping[tuple[str, str], _Function] = MappingProxyType(
    {
        ("wasi:clocks/monotonic-clock", "now"): _monotonic_now,
        ("wasi:clocks/monotonic-clock", "resolution"): _resolution,
        ("wasi:clocks/monotonic-clock", "subscribe-duration"): _subscribe_duration,
        ("wasi:clocks/monotonic-clock", "subscribe-instant"): _subscribe_instant,
        ("wasi:clocks/wall-clock", "now"): _wall_now,
        ("wasi:clocks/wall-clock", "resolution"): _wall_resolution,
        ("wasi:io/poll", "poll"): _poll,
        ("wasi:io/poll", "[method]pollable.block"): _block,
        ("wasi:io/poll", "[method]pollable.ready"): _ready,
        ("wasi:io/error", "[method]error.to-debug-string"): _debug_string,
        ("wasi:io/streams", "[method]input-stream.read"): _read,
        ("wasi:io/streams", "[method]input-stream.blocking-read"): _read,
        ("wasi:io/streams", "[method]input-stream.skip"): _read,
        ("wasi:io/streams", "[method]input-stream.blocking-skip"): _read,
        ("wasi:io/streams", "[method]input-stream.subscribe"): _subscribe("input-stream"),
        ("wasi:io/streams", "[method]output-stream.check-write"): _check_write,
        ("wasi:io/streams", "[method]output-stream.write"): _write,
        ("wasi:io/streams", "[method]output-stream.blocking-write-and-flush"): _write,
        ("wasi:io/streams", "[method]output-stream.flush"): _flush,
        ("wasi:io/streams", "[method]output-stream.blocking-flush"): _flush,
        ("wasi:io/streams", "[method]output-stream.subscribe"): _subscribe("output-stream"),
        ("wasi:cli/stdin", "get-stdin"): _inert("input-stream"),
        ("wasi:cli/stdout", "get-stdout"): _stream_getter("stdout"),
        ("wasi:cli/stderr", "get-stderr"): _stream_getter("stderr"),
        ("wasi:cli/terminal-stdin", "get-terminal-stdin"): _none,
        ("wasi:cli/terminal-stdout", "get-terminal-stdout"): _none,
        ("wasi:cli/terminal-stderr", "get-terminal-stderr"): _none,
        ("wasi:cli/environment", "get-environment"): _empty(_PAIRS),
        ("wasi:cli/environment", "get-arguments"): _empty(_TEXTS),
        ("wasi:cli/environment", "initial-cwd"): _none,
        ("wasi:cli/exit", "exit"): _exit,
        ("wasi:cli/exit", "exit-with-code"): _exit_with_code,
        ("wasi:random/random", "get-random-bytes"): _random_bytes,
        ("wasi:random/random", "get-random-u64"): _random_u64,
        ("wasi:random/insecure", "get-insecure-random-bytes"): _random_bytes,
        ("wasi:random/insecure", "get-insecure-random-u64"): _random_u64,
        ("wasi:random/insecure-seed", "insecure-seed"): _insecure_seed,
        ("wasi:filesystem/preopens", "get-directories"): _empty(_DIRECTORIES),
        ("wasi:filesystem/types", "filesystem-error-code"): _error_code,
        ("wasi:sockets/instance-network", "instance-network"): _inert("network"),
        ("wasi:sockets/tcp-create-socket", "create-tcp-socket"): _access_denied,
        ("wasi:sockets/udp-create-socket", "create-udp-socket"): _access_denied,
        ("wasi:sockets/ip-name-lookup", "resolve-addresses"): _resolve_addresses,
    }
)
"""Interface without version, function → what it does."""

INTERFACES: frozenset[str] = frozenset(interface for interface, _ in FUNCTIONS) | {
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/udp",
}
"""Every interface that a component may import without a remark: what is not in FUNCTIONS only acts on what a guest cannot have."""
