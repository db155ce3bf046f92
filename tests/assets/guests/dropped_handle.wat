;; Waits for a pollable that it has dropped.
(import "wasi:io/poll@0.2.9" (instance $poll
  (export "pollable" (type $pollable (sub resource)))
  (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
(alias export $poll "pollable" (type $pollable))
(import "wasi:clocks/monotonic-clock@0.2.9" (instance $clock
  (alias outer 1 $pollable (type $outer)) (export "pollable" (type $pollable (eq $outer)))
  (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
(core func $subscribe (canon lower (func $clock "subscribe-duration")))
(core func $block (canon lower (func $poll "[method]pollable.block")))
(core func $drop (canon resource.drop $pollable))
(core instance $wasi (export "subscribe" (func $subscribe)) (export "block" (func $block)) (export "drop" (func $drop)))
(core module $module
  (import "wasi" "subscribe" (func $subscribe (param i64) (result i32)))
  (import "wasi" "block" (func $block (param i32)))
  (import "wasi" "drop" (func $drop (param i32)))
  (func (export "handler") (param i32) (result i32)
    (local $pollable i32)
    (local.set $pollable (call $subscribe (i64.const 1)))
    (call $drop (local.get $pollable))
    (call $block (local.get $pollable))
    unreachable))
(core instance $guest (instantiate $module (with "wasi" (instance $wasi))))
