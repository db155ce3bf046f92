;; Reads far behind its memory.
(core module $module
  (import "support" "memory" (memory 1))
  (func (export "handler") (param i32) (result i32) (i32.load (i32.const 0x7fffffff))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
