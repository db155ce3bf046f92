;; Returns an address outside its memory.
(core module $module (func (export "handler") (param i32) (result i32) (i32.const 0x7ffffff0)))
(core instance $guest (instantiate $module))
