;; Wants a table of 60,000 elements before it starts.
(core module $module (table 60000 funcref) (func (export "handler") (param i32) (result i32) unreachable))
(core instance $guest (instantiate $module))
