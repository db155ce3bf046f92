;; Grows its table until that is refused, then answers its size as eight bytes.
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (table $t 1 funcref)
  (func (export "handler") (param i32) (result i32)
    (loop $more (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))
    (i64.store (i32.const 64) (i64.extend_i32_u (table.size $t)))
    (call $respond (i32.const 200) (i32.const 64) (i32.const 8))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
