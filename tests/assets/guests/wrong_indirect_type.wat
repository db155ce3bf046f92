;; Calls a table element of another type.
(core module $module (table 1 funcref) (elem (i32.const 0) $f) (func $f) (type $t (func (result i32)))
  (func (export "handler") (param i32) (result i32) (call_indirect (type $t) (i32.const 0))))
(core instance $guest (instantiate $module))
