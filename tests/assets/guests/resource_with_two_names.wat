;; Imports one resource type under three names, as toolchains do with wasi:http, and another of the same name as one of ours; answers 200 "hello".
(import "wasi:io/poll@0.2.0" (instance $poll (export "pollable" (type (sub resource)))))
(alias export $poll "pollable" (type $pollable))
(import "example:fields/types" (instance (export "fields" (type $fields (sub resource))) (export "headers" (type (eq $fields)))
  (export "trailers" (type (eq $fields))) (export "pollable" (type (sub resource)))))
(import "example:fields/more" (instance (alias outer 1 $pollable (type $same)) (export "waiting" (type (eq $same)))))
(core module $module
  (import "support" "memory" (memory 1))
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "handler") (param i32) (result i32) (call $respond (i32.const 200) (i32.const 64) (i32.const 5)))
  (data (i32.const 64) "hello"))
(core instance $guest (instantiate $module (with "support" (instance $support))))
