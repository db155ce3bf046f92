;; Never returns.
(core module $module (func (export "handler") (param i32) (result i32) (loop (br 0)) unreachable))
(core instance $guest (instantiate $module))
