;; Answers a body that lies outside its memory.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "handler") (param i32) (result i32) (call $respond (i32.const 200) (i32.const 0x7ffffff0) (i32.const 4096))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
