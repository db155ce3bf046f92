;; Asks for the context and answers the tenant id.
(import "alga:extension/context" (instance $context
  (type $data' (record (field "request-id" (option string)) (field "tenant-id" string) (field "extension-id" string)
    (field "install-id" (option string)) (field "version-id" (option string)))) (export "context-data" (type $data (eq $data')))
  (export "get-context" (func (result $data)))))
(core func $get (canon lower (func $context "get-context") (memory $memory) (realloc $realloc)))
(core instance $context-core (export "get" (func $get)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (import "context" "get" (func $get (param i32)))
  (func (export "handler") (param i32) (result i32)
    (call $get (i32.const 256))
    (call $respond (i32.const 200) (i32.load (i32.const 268)) (i32.load (i32.const 272)))))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "context" (instance $context-core))))
