;; Calls a function that nobody provides.
(import "evil:package/door" (instance $door (export "open" (func))))
(core func $open (canon lower (func $door "open")))
(core instance $door-core (export "open" (func $open)))
(core module $module (import "door" "open" (func $open))
  (func (export "handler") (param i32) (result i32) (call $open) unreachable))
(core instance $guest (instantiate $module (with "door" (instance $door-core))))
