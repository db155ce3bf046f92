"""Reads the outer shape of a component's binary before anything compiles it: how much it would instantiate, what it imports and exports.

The attacks it stops: a core module or garbage where a component belongs; a component whose nested instantiations multiply (each level
twice: 2^n memories); more linear memories than the memory cap is divided by (N14); work for the compiler that no instance ever uses, in
modules that are only defined. The parser reads section headers, index spaces and the sizes of function bodies, checks every length against
the bytes there are, and bounds every count; what it does not know it refuses.

Pure Python, no engine.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from runnerd.engine.binary_reader import (
    ALIAS,
    ALIAS_OUTER,
    COMPONENT,
    COMPONENT_PREAMBLE,
    CORE_INSTANCE,
    CORE_MODULE,
    CORE_PREAMBLE,
    CORE_SORT_MODULE,
    EXPORT,
    IMPORT,
    INSTANCE,
    SORT_COMPONENT,
    SORT_CORE,
    SORT_FUNCTION,
    SORT_TYPE,
    BinaryReader,
    reject,
)
from runnerd.engine.profile import MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_TABLES

MAX_COMPONENT_BYTES = 64 * 1024 * 1024
"""DESIGN §7: wasm in a bundle."""
HANDLER = "handler"
_MAX_NESTING = 8
_MAX_SECTIONS = 50_000
_MAX_IMPORTS = 1_000
_MAX_FUNCTIONS = 1_000_000
"""Of one instance."""
MAX_FUNCTION_BYTES = 2 * 1024 * 1024
"""One function's body: compiling may take more than twice as long for twice as much. CPython's largest has 0.4 MiB."""
MAX_MODULES = 200
MAX_DEFINED = {
    "types": 50_000,
    "imports": 20_000,
    "functions": 100_000,
    "tables": 1_000,
    "memories": 1_000,
    "globals": 50_000,
    "exports": 50_000,
    "element segments": 10_000,
    "data segments": 100_000,
}
"""Of all core modules in the binary together, whether anything instantiates them or not: the compiler works on every one. What the two
toolchains make comes to 14 modules, 13,500 functions, 2,400 imports, 4,300 exports and 10,000 data segments."""

_MODULE_FUNCTIONS, _MODULE_TABLES, _MODULE_MEMORIES, _MODULE_CODE = 3, 4, 5, 10
_DEFINED_BY = {
    1: "types",
    2: "imports",
    _MODULE_FUNCTIONS: "functions",
    _MODULE_TABLES: "tables",
    _MODULE_MEMORIES: "memories",
    6: "globals",
    7: "exports",
    9: "element segments",
    11: "data segments",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentShape:
    """What one instance of a component consists of, all nested ones included."""

    size: int
    memories: int
    tables: int
    functions: int
    core_instances: int
    imports: tuple[str, ...]
    """Instances and functions; types are left out."""
    exports: tuple[str, ...]


@dataclass(slots=True)
class _Totals:
    memories: int = 0
    tables: int = 0
    functions: int = 0
    core_instances: int = 0

    def add(self, other: _Totals) -> None:
        self.memories += other.memories
        self.tables += other.tables
        self.functions += other.functions
        self.core_instances += other.core_instances


@dataclass(slots=True)
class _Scope:
    """Index spaces of one component, as far as they matter; None stands for what comes from outside."""

    parent: _Scope | None
    modules: list[_Totals | None] = field(default_factory=list)
    components: list[_Totals | None] = field(default_factory=list)
    totals: _Totals = field(default_factory=_Totals)
    imports: list[str] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)
    functions_exported: set[str] = field(default_factory=set)


def inspect_component(wasm: bytes) -> ComponentShape:
    """Read the shape of a component.

    Raises:
        CompileRejectedError: it is not a component, exceeds a limit, or does not export `handler`.
    """
    if len(wasm) > MAX_COMPONENT_BYTES:
        reject(f"the component has {len(wasm)} bytes; at most {MAX_COMPONENT_BYTES} are allowed")
    if wasm.startswith(CORE_PREAMBLE):
        reject("this is a core module; build a component of the world alga:extension/runner or extrunner:host/extension")
    if not wasm.startswith(COMPONENT_PREAMBLE):
        reject("this is not a WebAssembly component")
    walk = _Walk()
    scope = walk.component(BinaryReader(memoryview(wasm), len(COMPONENT_PREAMBLE), len(wasm)), None, 0)
    _check(scope)
    totals = scope.totals
    return ComponentShape(
        size=len(wasm),
        memories=totals.memories,
        tables=totals.tables,
        functions=totals.functions,
        core_instances=totals.core_instances,
        imports=tuple(scope.imports),
        exports=tuple(scope.exports),
    )


def _check(scope: _Scope) -> None:
    totals = scope.totals
    if HANDLER not in scope.functions_exported:
        reject("the component does not export the function handler")
    if not 1 <= totals.memories <= MAX_MEMORIES:
        reject(f"the component makes {totals.memories} linear memories; 1 to {MAX_MEMORIES} are allowed")
    if totals.tables > MAX_TABLES:
        reject(f"the component makes {totals.tables} tables; at most {MAX_TABLES} are allowed")
    if totals.core_instances > MAX_CORE_INSTANCES:
        reject(f"the component makes {totals.core_instances} core instances; at most {MAX_CORE_INSTANCES} are allowed")
    if totals.functions > _MAX_FUNCTIONS:
        reject(f"the component has {totals.functions} functions; at most {_MAX_FUNCTIONS} are allowed")
    if len(scope.imports) > _MAX_IMPORTS:
        reject(f"the component has {len(scope.imports)} imports; at most {_MAX_IMPORTS} are allowed")


class _Walk:
    """One pass over a component and what is nested in it."""

    def __init__(self) -> None:
        self.sections_left = _MAX_SECTIONS
        self.modules = 0
        self.defined: Counter[str] = Counter()

    def component(self, reader: BinaryReader, parent: _Scope | None, depth: int) -> _Scope:
        if depth > _MAX_NESTING:
            reject("components are nested too deeply")
        scope = _Scope(parent)
        while reader.offset < reader.end:
            identifier, body = self.section(reader)
            if identifier == CORE_MODULE:
                scope.modules.append(self.module(body))
            elif identifier == COMPONENT:
                if bytes(body.data[body.offset : body.offset + 8]) != COMPONENT_PREAMBLE:
                    reject("a nested component is malformed")
                body.offset += len(COMPONENT_PREAMBLE)
                scope.components.append(self.component(body, scope, depth + 1).totals)
            elif identifier in _SECTIONS:
                _SECTIONS[identifier](body, scope)
        return scope

    def section(self, reader: BinaryReader) -> tuple[int, BinaryReader]:
        self.sections_left -= 1
        if self.sections_left < 0:
            reject("the component has too many sections")
        return reader.section()

    def module(self, reader: BinaryReader) -> _Totals:
        if bytes(reader.data[reader.offset : reader.offset + 8]) != CORE_PREAMBLE:
            reject("a core module in the component is malformed")
        reader.offset += len(CORE_PREAMBLE)
        self.modules += 1
        if self.modules > MAX_MODULES:
            reject(f"the component contains more than {MAX_MODULES} core modules")
        counts: Counter[str] = Counter()
        while reader.offset < reader.end:
            identifier, body = self.section(reader)
            if identifier in _DEFINED_BY:
                counts[_DEFINED_BY[identifier]] += body.count()
            elif identifier == _MODULE_CODE:
                _check_bodies(body)
        self.defined.update(counts)
        for what, most in MAX_DEFINED.items():
            if self.defined[what] > most:
                reject(f"the core modules of the component have {self.defined[what]} {what}; at most {most} are allowed")
        return _Totals(core_instances=1, memories=counts["memories"], tables=counts["tables"], functions=counts["functions"])


def _check_bodies(reader: BinaryReader) -> None:
    for _ in range(reader.count()):
        size = reader.u32()
        if size > MAX_FUNCTION_BYTES:
            reject(f"a function of the component has {size} bytes; at most {MAX_FUNCTION_BYTES} are allowed")
        # A body that ends outside is met by the next read, or by the engine.
        reader.offset += size


def _item(space: list[_Totals | None], index: int) -> _Totals:
    if index >= len(space):
        reject("the component refers to something that it does not define")
    item = space[index]
    if item is None:
        reject("the component instantiates a module or component that it does not contain itself")
    return item


def _core_instances(reader: BinaryReader, scope: _Scope) -> None:
    for _ in range(reader.count()):
        if reader.byte() == 0:
            scope.totals.add(_item(scope.modules, reader.u32()))
            for _ in range(reader.count()):
                reader.name()
                reader.byte()
                reader.u32()
        else:
            for _ in range(reader.count()):
                reader.name()
                reader.byte()
                reader.u32()


def _instances(reader: BinaryReader, scope: _Scope) -> None:
    for _ in range(reader.count()):
        if reader.byte() == 0:
            scope.totals.add(_item(scope.components, reader.u32()))
            for _ in range(reader.count()):
                reader.name()
                reader.sort()
                reader.u32()
        else:
            for _ in range(reader.count()):
                reader.external_name()
                reader.sort()
                reader.u32()


def _aliases(reader: BinaryReader, scope: _Scope) -> None:
    for _ in range(reader.count()):
        sort = reader.sort()
        target = reader.byte()
        found: _Totals | None = None
        if target == ALIAS_OUTER:
            found = _outer(scope, sort, reader.u32(), reader.u32())
        else:
            reader.u32()
            reader.name()
        _enter(scope, sort, found)


def _outer(scope: _Scope, sort: tuple[int, int], levels: int, index: int) -> _Totals | None:
    target: _Scope | None = scope
    for _ in range(min(levels, _MAX_NESTING + 1)):
        target = target.parent if target is not None else None
    if target is None:
        return None
    space = _space(target, sort)
    return space[index] if space is not None and index < len(space) else None


def _space(scope: _Scope, sort: tuple[int, int]) -> list[_Totals | None] | None:
    if sort == (SORT_CORE, CORE_SORT_MODULE):
        return scope.modules
    return scope.components if sort[0] == SORT_COMPONENT else None


def _enter(scope: _Scope, sort: tuple[int, int], item: _Totals | None) -> None:
    space = _space(scope, sort)
    if space is not None:
        space.append(item)


def _imports(reader: BinaryReader, scope: _Scope) -> None:
    for _ in range(reader.count()):
        name = reader.external_name()
        sort, _ = reader.external_type()
        if sort[0] != SORT_TYPE:
            scope.imports.append(name)
        _enter(scope, sort, None)


def _exports(reader: BinaryReader, scope: _Scope) -> None:
    for _ in range(reader.count()):
        name = reader.external_name()
        sort = reader.sort()
        index = reader.u32()
        if reader.byte() == 1:
            reader.external_type()
        scope.exports.append(name)
        if sort[0] == SORT_FUNCTION:
            scope.functions_exported.add(name)
        # An export is an index of its own.
        space = _space(scope, sort)
        _enter(scope, sort, space[index] if space is not None and index < len(space) else None)


_SECTIONS = {CORE_INSTANCE: _core_instances, INSTANCE: _instances, ALIAS: _aliases, IMPORT: _imports, EXPORT: _exports}
