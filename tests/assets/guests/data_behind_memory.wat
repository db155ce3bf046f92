;; Has a data segment that lies outside its memory.
(core module $module
  (memory 1) (data (i32.const 0x7fff0000) "x")
  (func (export "handler") (param i32) (result i32) unreachable))
(core instance $guest (instantiate $module))
