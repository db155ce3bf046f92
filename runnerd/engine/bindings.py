"""The parts of wasmtime's C API that its Python module lacks or does too slowly, in this one file; a test for each.

All of it is private to the pinned version of the `wasmtime` package (decision 5): `_ffi` and `_bindings` may change with any release, and
the tests in tests/unit/engine/test_bindings.py say what broke.

Why not the public calls: they have no pooling allocator and no epoch callback; they walk the type tree and convert `list<u8>` one byte at a
time (RUNTIME §1); and they park a Python exception of one thread's host callback where another thread picks it up (RUNTIME §4.1).
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import wasmtime
from wasmtime import _bindings as raw
from wasmtime import _ffi as ffi
from wasmtime import component

from runnerd.engine.profile import (
    BRIDGE_CORE_INSTANCES,
    BRIDGE_MEMORIES,
    MAX_CORE_INSTANCES,
    MAX_MEMORIES,
    MAX_MEMORY_BYTES,
    MAX_TABLE_ELEMENTS,
    MAX_TABLES,
    MEMORY_KEEP_RESIDENT_BYTES,
    TABLE_KEEP_RESIDENT_BYTES,
    PoolSizes,
)

Value = ffi.wasmtime_component_val_t
"""One component value: `kind` at offset 0, content at offset 8."""
ValueList = ffi.wasmtime_component_vallist_t
RecordEntry = ffi.wasmtime_component_valrecord_entry_t
Name = ffi.wasm_name_t

VALUE_BYTES = ctypes.sizeof(Value)
CONTENT_OFFSET = Value.of.offset
ENTRY_BYTES = ctypes.sizeof(RecordEntry)

KIND_BOOL = ffi.WASMTIME_COMPONENT_BOOL.value
KIND_U8 = ffi.WASMTIME_COMPONENT_U8.value
KIND_U16 = ffi.WASMTIME_COMPONENT_U16.value
KIND_U32 = ffi.WASMTIME_COMPONENT_U32.value
KIND_U64 = ffi.WASMTIME_COMPONENT_U64.value
KIND_F64 = ffi.WASMTIME_COMPONENT_F64.value
KIND_STRING = ffi.WASMTIME_COMPONENT_STRING.value
KIND_LIST = ffi.WASMTIME_COMPONENT_LIST.value
KIND_RECORD = ffi.WASMTIME_COMPONENT_RECORD.value
KIND_TUPLE = ffi.WASMTIME_COMPONENT_TUPLE.value
KIND_VARIANT = ffi.WASMTIME_COMPONENT_VARIANT.value
KIND_ENUM = ffi.WASMTIME_COMPONENT_ENUM.value
KIND_OPTION = ffi.WASMTIME_COMPONENT_OPTION.value
KIND_RESULT = ffi.WASMTIME_COMPONENT_RESULT.value
KIND_RESOURCE = ffi.WASMTIME_COMPONENT_RESOURCE.value

HostCallback = Callable[[Any, Any, int, Any, int], None]
"""(context, arguments, their number, results, their number). Raises whatever it likes: it is wrapped."""
EpochCallback = Callable[[], int]
"""Returns the ticks until it wants to be asked again. Raises to end the guest."""


# --- configuration ---------------------------------------------------------------------------------------------------------------------


def use_pooling(config: wasmtime.Config, sizes: PoolSizes) -> None:
    """Give `config` a pooling allocator. Building the Engine then reserves address space, not memory."""
    pool = raw.wasmtime_pooling_allocation_config_new()
    try:
        raw.wasmtime_pooling_allocation_config_total_memories_set(pool, sizes.memories)
        raw.wasmtime_pooling_allocation_config_total_tables_set(pool, sizes.tables)
        raw.wasmtime_pooling_allocation_config_total_core_instances_set(pool, sizes.core_instances)
        raw.wasmtime_pooling_allocation_config_total_component_instances_set(pool, sizes.component_instances)
        raw.wasmtime_pooling_allocation_config_max_memory_size_set(pool, MAX_MEMORY_BYTES)
        raw.wasmtime_pooling_allocation_config_table_elements_set(pool, MAX_TABLE_ELEMENTS)
        raw.wasmtime_pooling_allocation_config_max_memories_per_component_set(pool, MAX_MEMORIES + BRIDGE_MEMORIES)
        raw.wasmtime_pooling_allocation_config_max_tables_per_component_set(pool, MAX_TABLES)
        raw.wasmtime_pooling_allocation_config_max_core_instances_per_component_set(pool, MAX_CORE_INSTANCES + BRIDGE_CORE_INSTANCES)
        raw.wasmtime_pooling_allocation_config_max_unused_warm_slots_set(pool, sizes.memories)
        raw.wasmtime_pooling_allocation_config_linear_memory_keep_resident_set(pool, MEMORY_KEEP_RESIDENT_BYTES)
        raw.wasmtime_pooling_allocation_config_table_keep_resident_set(pool, TABLE_KEEP_RESIDENT_BYTES)
        raw.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    finally:
        raw.wasmtime_pooling_allocation_config_delete(pool)


def disable_component_async(config: wasmtime.Config) -> None:
    """Refuse components that use the asynchronous part of the component model, and leave out the engine's tasks for it.

    NOTE: with those tasks, which are on by default, wasmtime 50.0.1 ends a guest that lends two resources to one host function, as
    `wasi:io/poll.poll` does, with "BUG: deferred host scope has no call context".
    """
    raw.wasmtime_config_wasm_component_model_async_set(config.ptr(), False)
    raw.wasmtime_config_concurrency_support_set(config.ptr(), False)


# --- errors ----------------------------------------------------------------------------------------------------------------------------


def _new_error(message: str) -> int:
    """Make an error for wasmtime to own; return its address."""
    pointer = wasmtime.WasmtimeError(message)._consume()  # noqa: SLF001
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def take_error(pointer: Any) -> str:
    """Return the text of an error that wasmtime returned, and free it."""
    vector = ffi.wasm_byte_vec_t()
    ffi.wasmtime_error_message(pointer, ctypes.byref(vector))
    text = ctypes.string_at(vector.data, vector.size).decode("utf-8", errors="replace")
    ffi.wasm_byte_vec_delete(ctypes.byref(vector))
    ffi.wasmtime_error_delete(pointer)
    return text


def _text_or_none(error: Any) -> str | None:
    return take_error(error) if error else None


def _check(error: Any) -> None:
    if error:
        raise wasmtime.WasmtimeError(take_error(error))


# --- host functions --------------------------------------------------------------------------------------------------------------------

_NUMBERS = itertools.count(1)
_HOST_FUNCTIONS: dict[int, HostCallback] = {}
_DROP_CALLBACKS: dict[int, Callable[[int], None]] = {}
_FINALIZER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@ffi.wasmtime_component_func_callback_t  # type: ignore[untyped-decorator]
def _host_function(  # noqa: PLR0913, PLR0917 - the signature is C's
    index: Any, context: Any, _type: Any, arguments: Any, argument_count: Any, results: Any, result_count: Any
) -> int:
    # SECURITY: nothing may escape. An exception here would be reported to wasmtime as success, with results never written.
    try:
        _HOST_FUNCTIONS[index](context, arguments, argument_count, results, result_count)
    except BaseException as exc:  # noqa: BLE001
        return _new_error(f"host: {type(exc).__name__}")
    return 0


@ffi.wasmtime_component_resource_destructor_t  # type: ignore[untyped-decorator]
def _drop_resource(index: Any, _context: Any, representation: Any) -> int:
    try:
        _DROP_CALLBACKS[index](representation)
    except BaseException as exc:  # noqa: BLE001
        return _new_error(f"host: {type(exc).__name__}")
    return 0


@_FINALIZER  # type: ignore[untyped-decorator]
def _forget(index: Any) -> None:
    """Free a registration; its linker is gone."""
    _HOST_FUNCTIONS.pop(index, None)
    _DROP_CALLBACKS.pop(index, None)


@_FINALIZER  # type: ignore[untyped-decorator]
def _no_finalizer(_data: Any) -> None:
    """Do nothing: there is no data."""


def add_function(instance: component.LinkerInstance, name: str, callback: HostCallback) -> None:
    """Define a host function. `callback` runs on the thread of the call and writes its results in place."""
    index = next(_NUMBERS)
    _HOST_FUNCTIONS[index] = callback
    encoded = name.encode()
    error = ffi.wasmtime_component_linker_instance_add_func(instance.ptr(), encoded, len(encoded), _host_function, index, _forget)
    _check(error)


def add_resource(instance: component.LinkerInstance, name: str, type_id: int, dropped: Callable[[int], None]) -> None:
    """Define a resource type of the host. `dropped` gets the representation of each value that the guest drops."""
    index = next(_NUMBERS)
    _DROP_CALLBACKS[index] = dropped
    encoded = name.encode()
    resource_type = component.ResourceType.host(type_id)
    error = ffi.wasmtime_component_linker_instance_add_resource(
        instance.ptr(), encoded, len(encoded), resource_type.ptr(), _drop_resource, index, _forget
    )
    _check(error)


# --- epochs ----------------------------------------------------------------------------------------------------------------------------

_EPOCH_CALLBACK: list[EpochCallback] = []
_CONTINUE = 0


@raw._wasmtime_store_epoch_deadline_callback.argtypes[1]  # type: ignore[untyped-decorator] # noqa: SLF001
def _epoch_reached(_context: Any, _data: Any, delta: Any, kind: Any) -> int:
    # SECURITY: fail closed. Without an answer of the callback the guest ends here.
    try:
        delta[0] = _EPOCH_CALLBACK[0]()
        kind[0] = _CONTINUE
    except BaseException as exc:  # noqa: BLE001
        return _new_error(f"host: {type(exc).__name__}")
    return 0


def install_epoch_callback(callback: EpochCallback) -> None:
    """Set what every store of this process asks when its epoch deadline is reached. It runs on the thread of the guest."""
    _EPOCH_CALLBACK[:] = [callback]


def ask_at_epoch(store: wasmtime.Store) -> None:
    """Make `store` ask the installed callback at its epoch deadline instead of trapping."""
    raw.wasmtime_store_epoch_deadline_callback(store.ptr(), _epoch_reached, None, _no_finalizer)


# --- calls and values ------------------------------------------------------------------------------------------------------------------


def new_values(count: int) -> Any:
    """Return an array of cleared values. `delete_values` frees what they own."""
    return (Value * count)()


def call_function(store: wasmtime.Store, function: component.Func, arguments: Any, result: Any) -> str | None:
    """Call a component function of one result; return the error's text, None where it succeeded.

    Args:
        store: of the call.
        function: whose parameters are as many as `arguments`.
        arguments: an array of values (`new_values`).
        result: a cleared value.
    """
    error = ffi.wasmtime_component_func_call(
        ctypes.byref(function._func),  # noqa: SLF001
        store._context(),  # noqa: SLF001
        arguments,
        len(arguments),
        ctypes.byref(result),
        1,
    )
    return _text_or_none(error)


def instantiate(linker: component.Linker, store: wasmtime.Store, compiled: component.Component) -> tuple[component.Instance | None, str]:
    """Instantiate; return the instance, or None and the error's text."""
    instance = ffi.wasmtime_component_instance_t()
    error = ffi.wasmtime_component_linker_instantiate(linker.ptr(), store._context(), compiled.ptr(), ctypes.byref(instance))  # noqa: SLF001
    text = _text_or_none(error)
    if text is not None:
        return None, text
    return component.Instance._from_raw(instance), ""  # noqa: SLF001


def delete_value(value: Any) -> None:
    """Free what a value owns."""
    ffi.wasmtime_component_val_delete(ctypes.byref(value))


def delete_values(values: Any) -> None:
    """Free what an array of values owns."""
    for value in values:
        delete_value(value)


def new_list(vector: Any, size: int) -> int:
    """Allocate a list of `size` values, all `false`; return the address of the first."""
    ffi.wasmtime_component_vallist_new_uninit(ctypes.byref(vector), size)
    return _cleared(vector, size * VALUE_BYTES)


def new_tuple(vector: Any, size: int) -> int:
    """Allocate a tuple of `size` values, all `false`; return the address of the first."""
    ffi.wasmtime_component_valtuple_new_uninit(ctypes.byref(vector), size)
    return _cleared(vector, size * VALUE_BYTES)


def new_record(vector: Any, size: int) -> int:
    """Allocate a record of `size` fields without names, all `false`; return the address of the first."""
    ffi.wasmtime_component_valrecord_new_uninit(ctypes.byref(vector), size)
    return _cleared(vector, size * ENTRY_BYTES)


def _cleared(vector: Any, length: int) -> int:
    if not length:
        return 0
    address = ctypes.cast(vector.data, ctypes.c_void_p).value or 0
    # SECURITY: memory that is not yet filled must be harmless to free: kind 0 is a boolean.
    ctypes.memset(address, 0, length)
    return address


def set_name(vector: Any, data: bytes) -> None:
    """Fill a string or name with a copy of `data`."""
    ffi.wasm_byte_vec_new(ctypes.byref(vector), len(data), ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8)))


def get_name(vector: Any) -> bytes:
    """Return a copy of a string or name."""
    return ctypes.string_at(vector.data, vector.size)


def boxed(value: Any) -> Any:
    """Move a value to the heap of wasmtime, for options and results; return the pointer."""
    return ffi.wasmtime_component_val_new(ctypes.byref(value))


_memory_view = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_view.restype = ctypes.py_object
_memory_view.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_READ, _WRITE = 0x100, 0x200


def fill_bytes(vector: Any, data: bytes) -> None:
    """Make a list<u8> of `data`: strided copies in C, no step of Python per byte."""
    size = len(data)
    address = new_list(vector, size)
    if size:
        with _memory_view(address, size * VALUE_BYTES, _WRITE) as view:
            view[::VALUE_BYTES] = bytes([KIND_U8]) * size
            view[CONTENT_OFFSET::VALUE_BYTES] = data


def read_bytes(vector: Any) -> bytes:
    """Return the bytes of a list<u8>, by one strided copy.

    Raises:
        TypeError: it is a list of something else.
    """
    size = vector.size
    if not size:
        return b""
    address = ctypes.cast(vector.data, ctypes.c_void_p).value
    with _memory_view(address, size * VALUE_BYTES, _READ) as view:
        # A list holds values of one type, so the first one's kind is everyone's.
        if view[0] != KIND_U8:
            message = "not a list of bytes"
            raise TypeError(message)
        return bytes(view[CONTENT_OFFSET::VALUE_BYTES])


# --- resources -------------------------------------------------------------------------------------------------------------------------


def own_resource(context: Any, representation: int, type_id: int) -> Any:
    """Make an owned resource of the host for a guest; return the pointer for a value's content."""
    host = ffi.wasmtime_component_resource_host_new(True, representation, type_id)
    try:
        result = ctypes.POINTER(ffi.wasmtime_component_resource_any_t)()
        error = ffi.wasmtime_component_resource_host_to_any(context, host, ctypes.byref(result))
        _check(error)
        return result
    finally:
        ffi.wasmtime_component_resource_host_delete(host)


def take_resource(context: Any, resource: Any) -> tuple[int, int]:
    """Return (type, representation) of a host resource that a guest lends or gives.

    This ends the loan: a host function must call it on every borrowed argument before it returns, or the guest is ended.

    Raises:
        wasmtime.WasmtimeError: it is not one of the host's.
    """
    host = ctypes.POINTER(ffi.wasmtime_component_resource_host_t)()
    error = ffi.wasmtime_component_resource_any_to_host(context, resource, ctypes.byref(host))
    _check(error)
    try:
        return int(ffi.wasmtime_component_resource_host_type(host)), int(ffi.wasmtime_component_resource_host_rep(host))
    finally:
        ffi.wasmtime_component_resource_host_delete(host)
