;; Aborts.
(core module $module (func (export "handler") (param i32) (result i32) unreachable))
(core instance $guest (instantiate $module))
