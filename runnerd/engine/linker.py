"""Builds the linker of one component from what it imports: the catalog's functions, our WASI, and traps for everything else.

Built from the component's own types, so that every import has a definition: components of componentize-js import the whole world they were
built against (RUNTIME §4.9). A name decides what a function does; its types are checked when it is called, and at publish.
"""

from __future__ import annotations

from typing import Any

import wasmtime
from wasmtime import component

from runnerd.capabilities.catalog import BY_NAME, INTERFACES
from runnerd.engine import bindings, bridge, wasi
from runnerd.engine.host_functions import host_function, unknown_function
from runnerd.engine.resources import TypeIds, drop_resource
from runnerd.engine.wasi import wasi_function


class UnlinkableError(Exception):
    """The component imports something that a host cannot provide: a module, a component, a bare value."""


def interface_of(name: str) -> str:
    """Return an import's interface without its version, where versions of that package are compatible.

    WASI 0.2.x and extrunner:host 0.1.x only grow; any other version is another interface, which nobody provides.
    """
    interface, at, version = name.partition("@")
    if not at:
        return interface
    compatible = (interface.startswith("wasi:") and version.startswith("0.2.")) or (
        interface.startswith("extrunner:host/") and version.startswith("0.1.")
    )
    return interface if compatible else name


def is_known(name: str) -> bool:
    """Tell whether an imported interface is one of ours."""
    interface = interface_of(name)
    return interface in INTERFACES or interface in wasi.INTERFACES


def build_linker(engine: wasmtime.Engine, compiled: component.Component, *, bridged: bool = False) -> component.Linker:
    """Define every import of a component.

    Args:
        engine: of the process.
        compiled: the component.
        bridged: whether it was composed with the bridge. Without that its import of the bridge's name is one that nobody provides.

    Raises:
        UnlinkableError: an import is neither an instance nor a function.
    """
    linker = component.Linker(engine)
    types = TypeIds()
    with linker.root() as root:
        for name, imported in compiled.type.imports(engine).items():
            item = imported.ty
            if isinstance(item, component.FuncType):
                bindings.add_function(root, name, unknown_function(name))
            elif isinstance(item, component.ComponentInstanceType):
                with root.add_instance(name) as instance:
                    if bridged and name == bridge.HOST:
                        for function_name in item.exports(engine):
                            bindings.add_function(instance, function_name, bridge.FUNCTIONS[function_name])
                    else:
                        _define(engine, instance, name, item, types)
            elif isinstance(item, component.ResourceType):
                bindings.add_resource(root, name, types.declare(name, item, ours=False), drop_resource)
            elif not isinstance(item, component.ValType):
                message = f"{name} is imported as a {type(item).__name__}"
                raise UnlinkableError(message)
    return linker


def _define(engine: wasmtime.Engine, instance: component.LinkerInstance, name: str, imported: Any, types: TypeIds) -> None:
    interface = interface_of(name)
    for function_name, exported in imported.exports(engine).items():
        item = exported.ty
        if isinstance(item, component.FuncType):
            bindings.add_function(instance, function_name, _callback(interface, function_name, types))
        elif isinstance(item, component.ResourceType):
            number = types.declare(function_name, item, ours=interface in wasi.INTERFACES)
            bindings.add_resource(instance, function_name, number, drop_resource)
        elif not isinstance(item, component.ValType):
            message = f"{name} exports {function_name} as a {type(item).__name__}"
            raise UnlinkableError(message)


def _callback(interface: str, function_name: str, types: TypeIds) -> bindings.HostCallback:
    catalogued = BY_NAME.get((interface, function_name))
    if catalogued is not None:
        return host_function(catalogued)
    implementation = wasi.FUNCTIONS.get((interface, function_name))
    if implementation is not None:
        return wasi_function(implementation, types)
    return unknown_function(f"{interface}.{function_name}")
