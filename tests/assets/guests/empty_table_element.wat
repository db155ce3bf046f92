;; Calls an empty element of its table.
(core module $module (table 2 funcref) (type $t (func (result i32)))
  (func (export "handler") (param i32) (result i32) (call_indirect (type $t) (i32.const 1))))
(core instance $guest (instantiate $module))
