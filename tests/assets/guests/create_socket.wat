;; Tries to create a TCP socket and answers 200 where it got one, 500 plus the number of the error case otherwise.
(import "wasi:sockets/network@0.2.9" (instance $network
  (type $error' (enum "unknown" "access-denied" "not-supported")) (export "error-code" (type $error (eq $error')))
  (type $family' (enum "ipv4" "ipv6")) (export "ip-address-family" (type $family (eq $family')))))
(import "wasi:sockets/tcp@0.2.9" (instance $tcp (export "tcp-socket" (type (sub resource)))))
(alias export $tcp "tcp-socket" (type $socket))
(alias export $network "error-code" (type $error))
(alias export $network "ip-address-family" (type $family))
(import "wasi:sockets/tcp-create-socket@0.2.9" (instance $create
  (alias outer 1 $socket (type $s)) (export "tcp-socket" (type $tcp-socket (eq $s)))
  (alias outer 1 $error (type $e)) (export "error-code" (type $error-code (eq $e)))
  (alias outer 1 $family (type $f)) (export "ip-address-family" (type $ip-address-family (eq $f)))
  (export "create-tcp-socket" (func (param "address-family" $ip-address-family) (result (result (own $tcp-socket) (error $error-code)))))))
(core func $create-core (canon lower (func $create "create-tcp-socket") (memory $memory)))
(core instance $wasi (export "create" (func $create-core)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (import "wasi" "create" (func $create (param i32 i32)))
  (func (export "handler") (param i32) (result i32)
    (call $create (i32.const 0) (i32.const 96))
    (call $respond
      (if (result i32) (i32.load8_u (i32.const 96)) (then (i32.add (i32.const 500) (i32.load8_u (i32.const 100)))) (else (i32.const 200)))
      (i32.const 64) (i32.const 0))))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "wasi" (instance $wasi))))
