;; Grows its memory until that is refused, then writes behind it.
(core module $module
  (import "support" "memory" (memory 1))
  (func (export "handler") (param i32) (result i32)
    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    (loop $one (br_if $one (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (i32.store (i32.mul (memory.size) (i32.const 65536)) (i32.const 1))
    unreachable))
(core instance $guest (instantiate $module (with "support" (instance $support))))
