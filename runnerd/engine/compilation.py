"""Turns an author's component into native code for this engine. Runs in a compiler child, one per artifact (T16), never in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import wasmtime
from wasmtime import component

from runnerd.capabilities.catalog import BY_NAME, EXECUTE_REQUEST, EXECUTE_RESPONSE, HostFunction
from runnerd.capabilities.shapes import TEXT, TupleOf
from runnerd.engine.binary_reader import CompileRejectedError
from runnerd.engine.bridge import RUN
from runnerd.engine.component_layout import NotComposableError
from runnerd.engine.compose import AUTHOR, compose
from runnerd.engine.engine import build_compile_engine
from runnerd.engine.inspection import HANDLER, ComponentShape, inspect_component
from runnerd.engine.linker import interface_of, is_known
from runnerd.engine.outcomes import reason_of
from runnerd.engine.profile import DEFAULT_PROFILE, EngineProfile
from runnerd.engine.type_checks import FunctionType, check_function

__all__ = ["CompileRejectedError", "CompiledComponent", "ComponentShape", "compile_component", "inspect_component", "unknown_imports"]


def unknown_imports(shape: ComponentShape) -> tuple[str, ...]:
    """Return the imports that nobody provides: calling one is a trap. To be reported at publish (RUNTIME §4.9)."""
    return tuple(name for name in shape.imports if not is_known(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledComponent:
    """Native code, and what must be known to run it."""

    artifact: bytes
    memories: int
    """Linear memories of one instance of the author's component."""
    bridged: bool
    """Whether the bridge was composed around it."""
    unbridged_because: str = ""
    """Why not, where it was wanted."""


def compile_component(wasm: bytes, profile: EngineProfile = DEFAULT_PROFILE) -> CompiledComponent:
    """Compile a component for workers with the same fingerprint, with the bridge around it where that is possible.

    Cost: seconds of CPU on every core, and some ten times the component's size in memory.

    Raises:
        CompileRejectedError: the component is not acceptable; the text says why, for its author.
    """
    shape = inspect_component(wasm)
    engine = build_compile_engine(profile)
    why = ""
    if profile.bridge:
        try:
            compiled = component.Component(engine, compose(wasm, memories=shape.memories))
        except (NotComposableError, wasmtime.WasmtimeError) as exc:
            # Invalid when composed: a type that differs from the world's, or a component that is invalid by itself. The next lines tell.
            why = str(exc) if isinstance(exc, NotComposableError) else reason_of(str(exc))
        else:
            _check_run(engine, compiled)
            _check_types(engine, compiled, handlers=_exports_of_author(engine, compiled))
            return CompiledComponent(artifact=bytes(compiled.serialize()), memories=shape.memories, bridged=True)
    try:
        compiled = component.Component(engine, wasm)
    except wasmtime.WasmtimeError as exc:
        raise CompileRejectedError("the component does not compile: " + reason_of(str(exc))) from exc
    _check_types(engine, compiled, handlers=compiled.type.exports(engine))
    return CompiledComponent(artifact=bytes(compiled.serialize()), memories=shape.memories, bridged=False, unbridged_because=why)


def _check_run(engine: wasmtime.Engine, compiled: component.Component) -> None:
    """Fail on a mistake of the composer's that is valid all the same."""
    run = compiled.type.exports(engine)[RUN].ty
    expected = FunctionType(params=(TEXT, TEXT), result=TupleOf((TEXT, TEXT)))
    if not isinstance(run, component.FuncType) or check_function(run, expected) is not None:
        message = "the composed component has another entry than was composed"
        raise TypeError(message)


def _exports_of_author(engine: wasmtime.Engine, compiled: component.Component) -> Mapping[str, Any]:
    exported = compiled.type.exports(engine)[AUTHOR].ty
    if not isinstance(exported, component.ComponentInstanceType):
        message = "the composed component does not export its author's"
        raise TypeError(message)
    return exported.exports(engine)


def _check_types(engine: wasmtime.Engine, compiled: component.Component, *, handlers: Mapping[str, Any]) -> None:
    """Compare `handler` and the imports with the world, so that an author hears of it at publish and not a user at run time."""
    handler = handlers[HANDLER].ty
    expected = FunctionType(params=(EXECUTE_REQUEST,), result=EXECUTE_RESPONSE)
    if not isinstance(handler, component.FuncType) or (problem := check_function(handler, expected)) is not None:
        detail = problem if isinstance(handler, component.FuncType) else "it is not a function"
        raise CompileRejectedError(f"handler is not the function of the world: {detail}")  # noqa: EM102, TRY003
    for name, imported in compiled.type.imports(engine).items():
        item = imported.ty
        if isinstance(item, component.ComponentInstanceType):
            _check_imported(engine, interface_of(name), item)
        elif isinstance(item, component.ModuleType | component.ComponentType):
            raise CompileRejectedError(f"{name} is imported as a module or component, which no host provides")  # noqa: EM102, TRY003


def _check_imported(engine: wasmtime.Engine, interface: str, imported: component.ComponentInstanceType) -> None:
    for name, exported in imported.exports(engine).items():
        function = BY_NAME.get((interface, name))
        item = exported.ty
        if function is not None and isinstance(item, component.FuncType):
            problem = check_function(item, _type_of(function))
            if problem is not None:
                raise CompileRejectedError(f"{interface}.{name} is imported with another type than the world's: {problem}")  # noqa: EM102, TRY003
        elif isinstance(item, component.ModuleType | component.ComponentType):
            raise CompileRejectedError(f"{interface} is expected to hold modules, which no host provides")  # noqa: EM102, TRY003


def _type_of(function: HostFunction) -> FunctionType:
    return FunctionType(params=tuple(shape for _, shape in function.params), result=function.result, error=function.error)
