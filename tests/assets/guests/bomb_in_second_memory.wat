;; Grows and fills the second of its two memories until that is refused, then aborts.
(core module $module
  (memory 1)
  (func (export "handler") (param i32) (result i32)
    (local $page i32)
    (loop $more
      (local.set $page (memory.grow (i32.const 1)))
      (if (i32.eq (local.get $page) (i32.const -1)) (then unreachable))
      (memory.fill (i32.mul (local.get $page) (i32.const 65536)) (i32.const 7) (i32.const 65536))
      (br $more))
    unreachable))
(core instance $guest (instantiate $module))
