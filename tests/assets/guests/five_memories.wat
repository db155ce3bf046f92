;; Has more memories than are allowed.
(core module $module (memory 1) (memory 1) (memory 1) (memory 1) (func (export "handler") (param i32) (result i32) unreachable))
(core instance $guest (instantiate $module))
