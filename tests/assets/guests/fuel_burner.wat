;; Calls a function that does nothing, without end: where fuel is dearest.
(core module $module
  (func $nothing)
  (func (export "handler") (param i32) (result i32) (loop $more (call $nothing) (br $more)) unreachable))
(core instance $guest (instantiate $module))
