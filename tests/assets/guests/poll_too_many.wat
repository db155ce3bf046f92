;; Polls 65 pollables at once.
(import "wasi:io/poll@0.2.9" (instance $poll
  (export "pollable" (type $pollable (sub resource)))
  (export "poll" (func (param "in" (list (borrow $pollable))) (result (list u32))))))
(alias export $poll "pollable" (type $pollable))
(import "wasi:clocks/monotonic-clock@0.2.9" (instance $clock
  (alias outer 1 $pollable (type $outer)) (export "pollable" (type $pollable (eq $outer)))
  (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
(core func $subscribe (canon lower (func $clock "subscribe-duration")))
(core func $poll-core (canon lower (func $poll "poll") (memory $memory) (realloc $realloc)))
(core instance $wasi (export "subscribe" (func $subscribe)) (export "poll" (func $poll-core)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "wasi" "subscribe" (func $subscribe (param i64) (result i32)))
  (import "wasi" "poll" (func $poll (param i32 i32 i32)))
  (func (export "handler") (param i32) (result i32)
    (local $left i32)
    (local.set $left (i32.const 65))
    (loop $more
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (i32.store offset=1024 (i32.mul (local.get $left) (i32.const 4)) (call $subscribe (i64.const 60000000000)))
      (br_if $more (local.get $left)))
    (call $poll (i32.const 1024) (i32.const 65) (i32.const 512))
    unreachable))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "wasi" (instance $wasi))))
