"""Small real components, each of which answers every request with its own marker; and a way to run a compiled one."""

from __future__ import annotations

from typing import Any

import wasmtime
from wasmtime import component

from runnerd.engine.engine import build_compile_engine

_COMPONENT = """
(component
  (type $header' (record (field "name" string) (field "value" string)))
  (export $header "http-header" (type $header'))
  (type $context' (record
    (field "request-id" (option string)) (field "tenant-id" string) (field "extension-id" string)
    (field "install-id" (option string)) (field "version-id" (option string))))
  (export $context "context-data" (type $context'))
  (type $http' (record
    (field "method" string) (field "url" string) (field "headers" (list $header)) (field "body" (option (list u8)))))
  (export $http "http-request" (type $http'))
  (type $request' (record (field "context" $context) (field "http" $http)))
  (export $request "execute-request" (type $request'))
  (type $response' (record (field "status" u16) (field "headers" (list $header)) (field "body" (option (list u8)))))
  (export $response "execute-response" (type $response'))
  (core module $code
    (memory (export "memory") %(pages)d)
    (global $free (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $start i32)
      (local.set $start (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
      (global.set $free (i32.add (local.get $start) (local.get 3)))
      (local.get $start))
    (func (export "handler") (param i32) (result i32) (i32.const 16))
    (data (i32.const 16) "\\c8\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\01\\00\\00\\00\\40\\00\\00\\00\\%(length)02x\\00\\00\\00")
    (data (i32.const 64) "%(marker)s"))
  (core instance $made (instantiate $code))
  (func $handler (param "request" $request) (result $response)
    (canon lift (core func $made "handler") (memory (core memory $made "memory")) (realloc (core func $made "realloc"))))
  (export "handler" (func $handler)))
"""


def marker_guest(marker: str, *, pages: int = 1) -> bytes:
    """Return a component that answers 200 and `marker`, at most 255 characters of ASCII."""
    return bytes(wasmtime.wat2wasm(_COMPONENT % {"marker": marker, "length": len(marker), "pages": pages}))


def run_marker(descriptor: int) -> str:
    """Map the artifact behind a descriptor as a worker does, run it, and return the body of its answer."""
    engine = build_compile_engine()
    mapped = component.Component.deserialize_file(engine, f"/proc/self/fd/{descriptor}")
    store = wasmtime.Store(engine)
    store.set_fuel(1_000_000)
    store.set_epoch_deadline(1_000)
    instance = component.Linker(engine).instantiate(store, mapped)
    handler = instance.get_func(store, "handler")
    assert handler is not None
    answer: Any = handler(store, _record(context=_context(), http=_record(method="GET", url="/", headers=[], body=None)))
    return bytes(answer.body).decode()


def _context() -> component.Record:
    return _record(**{"request-id": None, "tenant-id": "t", "extension-id": "e", "install-id": None, "version-id": None})


def _record(**fields: object) -> component.Record:
    made = component.Record()
    for name, value in fields.items():
        setattr(made, name, value)
    return made
