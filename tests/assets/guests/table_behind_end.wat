;; Grows its table until that is refused, then calls the element behind its end.
(core module $module
  (type $f (func))
  (table $t 1 funcref)
  (func (export "handler") (param i32) (result i32)
    (loop $more (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))
    (call_indirect $t (type $f) (table.size $t))
    unreachable))
(core instance $guest (instantiate $module))
