;; Answers 2 MiB and as many bytes as the request's body has.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "handler") (param $request i32) (result i32)
    (drop (memory.grow (i32.const 48)))
    (call $respond (i32.const 200) (i32.const 64)
      (i32.add (i32.const 0x200000) (i32.load (i32.add (local.get $request) (i32.const 84)))))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
