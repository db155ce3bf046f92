"""Runs guests in the test's own process: engine, ticker, a scripted host. For what needs no worker process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wasmtime import component as wasm_component

from runnerd.capabilities.catalog import HostFunction
from runnerd.engine.calls import Call, GuestContext, GuestRequest
from runnerd.engine.compilation import CompiledComponent, compile_component
from runnerd.engine.engine import Ticker, build_engine
from runnerd.engine.invocation import Finished, LoadedComponent, prepare_process, run_call
from runnerd.engine.journal import Journal, LogLine
from runnerd.engine.limits import InvocationLimits
from runnerd.engine.profile import DEFAULT_PROFILE, EngineProfile, PoolSizes
from tests.fakes import guests

MIB = 1024 * 1024
ALWAYS = frozenset({"context.read", "log.emit", "config.read"})
CONTEXT = GuestContext(request_id="request-1", tenant_id="tenant-1", extension_id="com.example.one", install_id="i-1", version_id="v-1")
GET = GuestRequest(method="GET", url="/", headers=(), body=None)
Answer = Callable[[HostFunction, Sequence[object]], tuple[object, str | None]]


def limits(**changes: Any) -> InvocationLimits:
    values: dict[str, Any] = {
        "wall_seconds": 10.0,
        "cpu_seconds": 10.0,
        "fuel": 10_000_000_000,
        "memory_bytes": 64 * MIB,
        "response_bytes": 2 * MIB,
        "host_calls": 1_000,
        "log_lines": 256,
        "log_bytes": 64 * 1024,
    }
    return InvocationLimits(**values | changes)


def post(body: bytes) -> GuestRequest:
    return GuestRequest(method="POST", url="/", headers=(("content-type", "text/plain"),), body=body)


@dataclass
class ScriptedPort:
    """Answers host calls from a function and remembers them."""

    answer: Answer
    calls: list[tuple[str, list[object]]] = field(default_factory=list)

    def call(self, function: HostFunction, arguments: Sequence[object], *, timeout_seconds: float) -> tuple[object, str | None]:
        self.calls.append((function.qualified_name, list(arguments)))
        return self.answer(function, arguments)


def no_answer(function: HostFunction, arguments: Sequence[object]) -> tuple[object, str | None]:
    message = f"nobody expected {function.qualified_name}"
    raise AssertionError(message)


@dataclass
class Ran:
    finished: Finished
    lines: list[LogLine]
    call: Call
    port: ScriptedPort

    @property
    def outcome(self) -> Any:
        return self.finished.outcome


class EngineKit:
    """One engine for a whole test session."""

    def __init__(self, *, bridge: bool = True) -> None:
        self.bridge = bridge
        self.engine = build_engine(DEFAULT_PROFILE, PoolSizes.for_slots(4))
        prepare_process()
        self.ticker = Ticker(self.engine)
        self.ticker.start()
        self._loaded: dict[str, LoadedComponent] = {}

    def load(self, name: str) -> LoadedComponent:
        if name not in self._loaded:
            self._loaded[name] = self.load_compiled(guests.compiled(name, bridge=self.bridge))
        return self._loaded[name]

    def load_wasm(self, wasm: bytes) -> LoadedComponent:
        return self.load_compiled(compile_component(wasm, EngineProfile(bridge=self.bridge)))

    def load_compiled(self, compiled: CompiledComponent, *, memories: int | None = None) -> LoadedComponent:
        code = wasm_component.Component.deserialize(self.engine, compiled.artifact)
        return LoadedComponent(self.engine, code, memories=compiled.memories if memories is None else memories, bridged=compiled.bridged)

    def cancel(self, call: Call) -> None:
        call.cancel()
        self.ticker.hurry()

    def call(
        self, *, within: InvocationLimits | None = None, answer: Answer = no_answer, grants: frozenset[str] = ALWAYS
    ) -> tuple[Call, list[LogLine]]:
        chosen = within or limits()
        lines: list[LogLine] = []
        journal = Journal(lines.extend, max_lines=chosen.log_lines, max_bytes=chosen.log_bytes)
        return Call(context=CONTEXT, limits=chosen, capabilities=grants, journal=journal, port=ScriptedPort(answer)), lines

    def run(
        self,
        guest: str | LoadedComponent,
        request: GuestRequest = GET,
        *,
        within: InvocationLimits | None = None,
        answer: Answer = no_answer,
        grants: frozenset[str] = ALWAYS,
        cancel_after: float | None = None,
    ) -> Ran:
        loaded = self.load(guest) if isinstance(guest, str) else guest
        call, lines = self.call(within=within, answer=answer, grants=grants)
        timer = None
        if cancel_after is not None:
            timer = threading.Timer(cancel_after, lambda: self.cancel(call))
            timer.start()
        try:
            finished = run_call(loaded, call, request, self.ticker)
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()
        call.journal.close()
        assert isinstance(call.port, ScriptedPort)
        return Ran(finished=finished, lines=lines, call=call, port=call.port)


def elapsed(since: float) -> float:
    return time.monotonic() - since
