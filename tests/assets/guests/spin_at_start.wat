;; Never finishes its start function.
(core module $module (func $spin (loop (br 0))) (start $spin) (func (export "handler") (param i32) (result i32) unreachable))
(core instance $guest (instantiate $module))
