;; Aborts in its start function.
(core module $module (func $abort unreachable) (start $abort) (func (export "handler") (param i32) (result i32) unreachable))
(core instance $guest (instantiate $module))
