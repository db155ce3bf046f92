;; Hands a value of almost 10 MiB, with a namespace, a key and metadata of 130 KiB each, to extrunner:host/kv.put and answers 200, or 500 plus
;; the number of the error case.
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
  (func (export "handler") (param i32) (result i32)
    (drop (memory.grow (i32.const 170)))
    (memory.fill (i32.const 128) (i32.const 120) (i32.const 133120))
    (call $put (i32.const 128) (i32.const 133120) (i32.const 128) (i32.const 133120) (i32.const 128) (i32.const 10485504)
      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 128) (i32.const 133120) (i32.const 96))
    (call $respond
      (if (result i32) (i32.load8_u (i32.const 96)) (then (i32.add (i32.const 500) (i32.load8_u (i32.const 104)))) (else (i32.const 200)))
      (i32.const 64) (i32.const 0))))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "kv" (instance $kv-core))))
