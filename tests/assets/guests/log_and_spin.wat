;; Logs "last words", then never returns.
(import "alga:extension/logging" (instance $logging (export "log-info" (func (param "message" string)))))
(core func $log (canon lower (func $logging "log-info") (memory $memory)))
(core instance $logging-core (export "log" (func $log)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "logging" "log" (func $log (param i32 i32)))
  (data (i32.const 64) "last words")
  (func (export "handler") (param i32) (result i32) (call $log (i32.const 64) (i32.const 10)) (loop (br 0)) unreachable))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "logging" (instance $logging-core))))
