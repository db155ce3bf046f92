;; Answers a header value that is not UTF-8: half a character at its end.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (data (i32.const 64) "name") (data (i32.const 72) "value\e2\82")
  (data (i32.const 128) "\40\00\00\00\04\00\00\00\48\00\00\00\07\00\00\00")
  (func (export "handler") (param i32) (result i32)
    (local $response i32)
    (local.set $response (call $respond (i32.const 200) (i32.const 64) (i32.const 0)))
    (i32.store (i32.const 20) (i32.const 128))
    (i32.store (i32.const 24) (i32.const 1))
    (local.get $response)))
(core instance $guest (instantiate $module (with "support" (instance $support))))
