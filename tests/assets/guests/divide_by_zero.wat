;; Divides by zero.
(core module $module (func (export "handler") (param i32) (result i32) (i32.div_u (i32.const 1) (i32.const 0))))
(core instance $guest (instantiate $module))
