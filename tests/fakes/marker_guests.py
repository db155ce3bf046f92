"""Small real components, each of which answers every request with its own marker; and a way to run a compiled one."""

from __future__ import annotations

from functools import cache

import wasmtime
from wasmtime import component

from runnerd.engine.bridge import RUN
from runnerd.engine.invocation import LoadedComponent
from tests.fakes.engine_kit import EngineKit

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
    kit = _kit()
    mapped = component.Component.deserialize_file(kit.engine, f"/proc/self/fd/{descriptor}")
    bridged = mapped.get_export_index(RUN) is not None
    outcome = kit.run(LoadedComponent(kit.engine, mapped, memories=1, bridged=bridged)).outcome
    return bytes(outcome.body).decode()


@cache
def _kit() -> EngineKit:
    return EngineKit()
