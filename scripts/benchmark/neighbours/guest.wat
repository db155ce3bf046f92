;; One component of the world, with one behaviour in place of the word below: victim and attackers of the fairness benchmark.
(component
  (type $header' (record (field "name" string) (field "value" string)))
  (export $header "http-header" (type $header'))
  (type $context' (record
    (field "request-id" (option string)) (field "tenant-id" string) (field "extension-id" string)
    (field "install-id" (option string)) (field "version-id" (option string))))
  (export $context "context-data" (type $context'))
  (type $http' (record
    (field "method" string) (field "url" string) (field "headers" (list $header)) (field "body" (option (list u8)))))
  (export $http "http-request" (type $http'))
  (type $request' (record (field "context" $context) (field "http" $http)))
  (export $request "execute-request" (type $request'))
  (type $response' (record (field "status" u16) (field "headers" (list $header)) (field "body" (option (list u8)))))
  (export $response "execute-response" (type $response'))

  (import "wasi:io/poll@0.2.9" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.9" (instance $clock
    (alias outer 1 $pollable (type $outer)) (export "pollable" (type $pollable (eq $outer)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core instance $wasi (export "subscribe" (func $subscribe)) (export "block" (func $block)))

  (core module $code
    (import "wasi" "subscribe" (func $subscribe (param i64) (result i32)))
    (import "wasi" "block" (func $block (param i32)))
    (memory (export "memory") 1)
    (global $free (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $start i32)
      (local.set $start (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
      (global.set $free (i32.add (local.get $start) (local.get 3)))
      (local.get $start))
    (func $spin (param $turns i32)
      (loop $again
        (local.set $turns (i32.sub (local.get $turns) (i32.const 1)))
        (br_if $again (local.get $turns))))
    (func $wait (param $nanoseconds i64)
      (call $block (call $subscribe (local.get $nanoseconds))))
    (func $take (param $pages i32)
      (drop (memory.grow (local.get $pages)))
      (memory.fill (i32.const 65536) (i32.const 7) (i32.mul (local.get $pages) (i32.const 65536))))
    (func (export "handler") (param i32) (result i32)
      BEHAVIOUR
      (i32.const 16))
    (data (i32.const 16) "\c8\00\00\00\00\00\00\00\00\00\00\00\01\00\00\00\40\00\00\00\02\00\00\00")
    (data (i32.const 64) "ok"))
  (core instance $made (instantiate $code (with "wasi" (instance $wasi))))
  (func $handler (param "request" $request) (result $response)
    (canon lift (core func $made "handler") (memory (core memory $made "memory")) (realloc (core func $made "realloc"))))
  (export "handler" (func $handler)))
