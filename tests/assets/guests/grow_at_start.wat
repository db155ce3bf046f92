;; Grows and fills its memory in its start function until that is refused, then aborts.
(core module $module
  (import "support" "memory" (memory 1))
  (func $grow
    (local $page i32)
    (loop $more
      (local.set $page (memory.grow (i32.const 1)))
      (if (i32.eq (local.get $page) (i32.const -1)) (then unreachable))
      (memory.fill (i32.mul (local.get $page) (i32.const 65536)) (i32.const 7) (i32.const 65536))
      (br $more)))
  (start $grow)
  (func (export "handler") (param i32) (result i32) unreachable))
(core instance $guest (instantiate $module (with "support" (instance $support))))
