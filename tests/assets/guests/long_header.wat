;; Answers one header with a value of 20,000 bytes.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (data (i32.const 64) "x")
  (data (i32.const 128) "\40\00\00\00\01\00\00\00\00\04\00\00\20\4e\00\00")
  (func (export "handler") (param i32) (result i32)
    (local $response i32)
    (memory.fill (i32.const 1024) (i32.const 0x78) (i32.const 20000))
    (local.set $response (call $respond (i32.const 200) (i32.const 64) (i32.const 0)))
    (i32.store (i32.const 20) (i32.const 128))
    (i32.store (i32.const 24) (i32.const 1))
    (local.get $response)))
(core instance $guest (instantiate $module (with "support" (instance $support))))
