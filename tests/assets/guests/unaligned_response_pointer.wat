;; Returns an odd address.
(core module $module (func (export "handler") (param i32) (result i32) (i32.const 17)))
(core instance $guest (instantiate $module))
