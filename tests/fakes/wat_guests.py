"""Small real components for the daemon's tests, one behaviour each, compiled as the compiler child does."""

from __future__ import annotations

import wasmtime

from runnerd.artifacts.loaded import CompiledExtension
from runnerd.engine.compilation import compile_component
from runnerd.engine.profile import EngineProfile
from tests.fakes.dispatch_kit import make_extension

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
    (memory (export "memory") 1)
    (global $free (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $start i32) (local $end i32)
      (local.set $start (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
      (local.set $end (i32.add (local.get $start) (local.get 3)))
      (global.set $free (local.get $end))
      (block $fits
        (br_if $fits (i32.le_u (local.get $end) (i32.mul (memory.size) (i32.const 65536))))
        (drop (memory.grow (i32.add (i32.div_u (local.get 3) (i32.const 65536)) (i32.const 1)))))
      (local.get $start))
    (func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (i32.const 1)))
    ;; The request's body is an option of a list, at the words 56, 60 and 64 of the lowered parameters in memory.
    (func (export "handler") (param $request i32) (result i32)
      {code}
      (i32.const 16))
    (data (i32.const 16) "\\c8\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\01\\00\\00\\00\\40\\00\\00\\00\\05\\00\\00\\00")
    (data (i32.const 64) "hello"))
  (core instance $made (instantiate $code))
  (func $handler (param "request" $request) (result $response)
    (canon lift (core func $made "handler") (memory (core memory $made "memory")) (realloc (core func $made "realloc"))))
  (export "handler" (func $handler)))
"""

HELLO = ""
"""Answers 200 "hello"."""
BIG = """
  (drop (memory.grow (i32.const 48)))
  (i32.store (i32.const 32) (i32.const 65536))
  (i32.store (i32.const 36) (i32.const 3145728))
"""
"""Answers 3 MiB."""
LOOP = "(loop $again (br $again))"
GROW = """
  (loop $again
    (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (unreachable)))
    (memory.fill
      (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 1048576)) (i32.const 7) (i32.const 1048576))
    (br $again))
"""
"""Takes memory and fills it until it gets no more, then traps."""
HOARD = """
  (drop (memory.grow (i32.const 2400)))
  (memory.fill (i32.const 65536) (i32.const 7) (i32.const 157220864))
  (loop $forever (br $forever))
"""
"""Takes 150 MiB, fills it and keeps it for as long as it may run."""
RECURSE = "(drop (call $deep (i32.const 0)))"
TRAP = "(unreachable)"
BAD_STATUS = "(i32.store16 (i32.const 16) (i32.const 42))"


def component(code: str) -> bytes:
    """Assemble a guest."""
    return bytes(wasmtime.wat2wasm(_COMPONENT.replace("{code}", code)))


def compiled(code: str, *, bridge: bool = True) -> CompiledExtension:
    """Assemble and compile a guest."""
    built = compile_component(component(code), EngineProfile(bridge=bridge))
    return make_extension(built.artifact, memories=built.memories, bridged=built.bridged)
