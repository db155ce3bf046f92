;; Grows its memory until that is refused, then answers the number of pages as eight bytes.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "handler") (param i32) (result i32)
    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (i64.store (i32.const 64) (i64.extend_i32_u (memory.size)))
    (call $respond (i32.const 200) (i32.const 64) (i32.const 8))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
