;; Exports a function `run` from a string to a string beside its handler, as the host's own bridge might.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (data (i32.const 64) "mine")
  (func (export "run") (param i32 i32) (result i32) unreachable)
  (func (export "handler") (param i32) (result i32) (call $respond (i32.const 200) (i32.const 64) (i32.const 4))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
(alias core export $guest "run" (core func $run-core))
(func $run (param "frame" string) (result string) (canon lift (core func $run-core) (memory $memory) (realloc $realloc)))
(export "run" (func $run))
