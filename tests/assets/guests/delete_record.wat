;; Deletes ("notes", "one") from storage and answers 200, or 500 plus the number of the error case.
(import "alga:extension/storage" (instance $storage
  (type $error' (enum "missing" "conflict" "denied" "internal")) (export "storage-error" (type $error (eq $error')))
  (export "delete" (func (param "namespace" string) (param "key" string) (result (result (error $error)))))))
(core func $delete (canon lower (func $storage "delete") (memory $memory)))
(core instance $storage-core (export "delete" (func $delete)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (import "storage" "delete" (func $delete (param i32 i32 i32 i32 i32)))
  (data (i32.const 64) "notesone")
  (func (export "handler") (param i32) (result i32)
    (call $delete (i32.const 64) (i32.const 5) (i32.const 69) (i32.const 3) (i32.const 96))
    (call $respond
      (if (result i32) (i32.load8_u (i32.const 96)) (then (i32.add (i32.const 500) (i32.load8_u (i32.const 97)))) (else (i32.const 200)))
      (i32.const 64) (i32.const 0))))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "storage" (instance $storage-core))))
