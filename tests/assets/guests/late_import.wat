;; Imports something after its first definition, which the bridge does not know; answers 200 "late". ;; imports stay
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "handler") (param i32) (result i32) (call $respond (i32.const 200) (i32.const 64) (i32.const 4)))
  (data (i32.const 64) "late"))
(import "alga:extension/logging" (instance $logging (export "log-info" (func (param "message" string)))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
