;; Logs a line of 9,000 characters 1,000 times, then answers 200.
(import "alga:extension/logging" (instance $logging (export "log-warn" (func (param "message" string)))))
(core func $log (canon lower (func $logging "log-warn") (memory $memory)))
(core instance $logging-core (export "log" (func $log)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (import "logging" "log" (func $log (param i32 i32)))
  (func (export "handler") (param i32) (result i32)
    (local $left i32)
    (memory.fill (i32.const 1024) (i32.const 0x78) (i32.const 9000))
    (local.set $left (i32.const 1000))
    (loop $more
      (call $log (i32.const 1024) (i32.const 9000))
      (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
    (call $respond (i32.const 200) (i32.const 64) (i32.const 0))))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "logging" (instance $logging-core))))
