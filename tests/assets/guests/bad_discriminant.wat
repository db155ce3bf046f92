;; Answers an option that is neither none nor some.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "handler") (param i32) (result i32)
    (drop (call $respond (i32.const 200) (i32.const 64) (i32.const 0)))
    (i32.store (i32.const 28) (i32.const 7))
    (i32.const 16)))
(core instance $guest (instantiate $module (with "support" (instance $support))))
