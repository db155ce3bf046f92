"""Turns an author's component into native code for this engine. Runs in a compiler child, one per artifact (T16), never in a worker."""

from __future__ import annotations

import wasmtime
from wasmtime import component

from runnerd.capabilities.catalog import BY_NAME, EXECUTE_REQUEST, EXECUTE_RESPONSE, HostFunction
from runnerd.engine.binary_reader import CompileRejectedError
from runnerd.engine.engine import build_compile_engine
from runnerd.engine.inspection import HANDLER, ComponentShape, inspect_component
from runnerd.engine.linker import interface_of, is_known
from runnerd.engine.outcomes import reason_of
from runnerd.engine.profile import DEFAULT_PROFILE, EngineProfile
from runnerd.engine.type_checks import FunctionType, check_function

__all__ = ["CompileRejectedError", "ComponentShape", "compile_component", "inspect_component", "unknown_imports"]


def unknown_imports(shape: ComponentShape) -> tuple[str, ...]:
    """Return the imports that nobody provides: calling one is a trap. To be reported at publish (RUNTIME §4.9)."""
    return tuple(name for name in shape.imports if not is_known(name))


def compile_component(wasm: bytes, profile: EngineProfile = DEFAULT_PROFILE) -> bytes:
    """Compile a component and return the artifact that workers with the same fingerprint can map.

    Cost: seconds of CPU on every core, and some ten times the component's size in memory.

    Raises:
        CompileRejectedError: the component is not acceptable; the text says why, for its author.
    """
    inspect_component(wasm)
    engine = build_compile_engine(profile)
    try:
        compiled = component.Component(engine, wasm)
    except wasmtime.WasmtimeError as exc:
        raise CompileRejectedError("the component does not compile: " + reason_of(str(exc))) from exc
    _check_types(engine, compiled)
    return bytes(compiled.serialize())


def _check_types(engine: wasmtime.Engine, compiled: component.Component) -> None:
    """Compare `handler` and the imports with the world, so that an author hears of it at publish and not a user at run time."""
    handler = compiled.type.exports(engine)[HANDLER].ty
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
