;; Asks for the secret "api_key", says it in the log as it is, and answers it: 200 with the value, or 500 plus the number of the error case.
(import "alga:extension/secrets" (instance $secrets
  (type $error' (enum "missing" "denied" "expired" "internal")) (export "secret-error" (type $error (eq $error')))
  (export "get" (func (param "key" string) (result (result string (error $error)))))))
(import "alga:extension/logging" (instance $logging (export "log-warn" (func (param "message" string)))))
(core func $get (canon lower (func $secrets "get") (memory $memory) (realloc $realloc)))
(core func $log (canon lower (func $logging "log-warn") (memory $memory)))
(core instance $host (export "get" (func $get)) (export "log" (func $log)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (import "host" "get" (func $get (param i32 i32 i32)))
  (import "host" "log" (func $log (param i32 i32)))
  (data (i32.const 64) "api_key")
  (func (export "handler") (param i32) (result i32)
    (call $log (i32.const 64) (i32.const 7))
    (call $get (i32.const 64) (i32.const 7) (i32.const 96))
    (if (result i32) (i32.load8_u (i32.const 96))
      (then (call $respond (i32.add (i32.const 500) (i32.load8_u (i32.const 100))) (i32.const 64) (i32.const 0)))
      (else
        (call $log (i32.load (i32.const 100)) (i32.load (i32.const 104)))
        (call $respond (i32.const 200) (i32.load (i32.const 100)) (i32.load (i32.const 104)))))))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "host" (instance $host))))
