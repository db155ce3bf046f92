;; Hands as many bytes as the first four of the body say to extrunner:host/kv.put and answers 200, or 500 plus the number of the error case.
(import "extrunner:host/kv@0.1.0" (instance $kv
  (type $options' (record (field "expected-revision" (option u64)) (field "create-only" bool) (field "ttl-seconds" (option u32))
    (field "metadata" (option string)))) (export "put-options" (type $options (eq $options')))
  (type $error' (enum "missing" "conflict" "invalid" "denied" "quota-exceeded" "internal")) (export "kv-error" (type $error (eq $error')))
  (export "put" (func (param "namespace" string) (param "key" string) (param "value" (list u8)) (param "options" $options)
    (result (result u64 (error $error)))))))
(core func $put (canon lower (func $kv "put") (memory $memory) (realloc $realloc)))
(core instance $kv-core (export "put" (func $put)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (import "kv" "put" (func $put (param i32 i32 i32 i32 i32 i32 i32 i64 i32 i32 i32 i32 i32 i32 i32)))
  (func (export "handler") (param $request i32) (result i32)
    (local $size i32)
    (local.set $size (i32.load (i32.load offset=80 (local.get $request))))
    (drop (memory.grow (i32.add (i32.const 1) (i32.shr_u (local.get $size) (i32.const 16)))))
    (call $put (i32.const 64) (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 128) (local.get $size)
      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 96))
    (call $respond
      (if (result i32) (i32.load8_u (i32.const 96)) (then (i32.add (i32.const 500) (i32.load8_u (i32.const 104)))) (else (i32.const 200)))
      (i32.const 64) (i32.const 0))))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "kv" (instance $kv-core))))
