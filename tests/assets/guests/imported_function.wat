;; Calls an unknown function imported at the root.
(import "launch" (func $launch))
(core func $launch-core (canon lower (func $launch)))
(core instance $outside (export "launch" (func $launch-core)))
(core module $module (import "outside" "launch" (func $launch))
  (func (export "handler") (param i32) (result i32) (call $launch) unreachable))
(core instance $guest (instantiate $module (with "outside" (instance $outside))))
