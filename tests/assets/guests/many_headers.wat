;; Answers 65 headers, all the same.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (data (i32.const 64) "x-ok")
  (func (export "handler") (param i32) (result i32)
    (local $response i32) (local $index i32)
    (local.set $response (call $respond (i32.const 200) (i32.const 64) (i32.const 4)))
    (loop $more
      (i64.store (i32.add (i32.const 1024) (i32.mul (local.get $index) (i32.const 16))) (i64.const 0x400000040))
      (i64.store (i32.add (i32.const 1032) (i32.mul (local.get $index) (i32.const 16))) (i64.const 0x400000040))
      (local.set $index (i32.add (local.get $index) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $index) (i32.const 65))))
    (i32.store (i32.const 20) (i32.const 1024))
    (i32.store (i32.const 24) (i32.const 65))
    (local.get $response)))
(core instance $guest (instantiate $module (with "support" (instance $support))))
