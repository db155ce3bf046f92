;; Answers 200 with the request's body.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "handler") (param $request i32) (result i32)
    (call $respond (i32.const 200) (i32.load (i32.add (local.get $request) (i32.const 80)))
      (i32.load (i32.add (local.get $request) (i32.const 84))))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
