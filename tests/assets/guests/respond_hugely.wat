;; Takes all the memory it can get and answers with all of it.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "handler") (param i32) (result i32)
    (block $full (loop $more (br_if $full (i32.eq (memory.grow (i32.const 1)) (i32.const -1))) (br $more)))
    (call $respond (i32.const 200) (i32.const 0) (i32.shl (memory.size) (i32.const 16)))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
