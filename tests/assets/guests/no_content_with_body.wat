;; Answers status 204 with a body.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "handler") (param i32) (result i32) (call $respond (i32.const 204) (i32.const 64) (i32.const 5))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
