;; Answers 3 MiB, more than the engine copies.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "handler") (param i32) (result i32)
    (drop (memory.grow (i32.const 64)))
    (call $respond (i32.const 200) (i32.const 64) (i32.const 0x300000))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
