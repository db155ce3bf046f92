;; Wants 512 MiB of memory before it starts.
(core module $module (memory 8192) (func (export "handler") (param i32) (result i32) unreachable))
(core instance $guest (instantiate $module))
