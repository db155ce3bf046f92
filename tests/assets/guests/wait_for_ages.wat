;; Waits for five hundred years at once.
(import "wasi:io/poll@0.2.9" (instance $poll
  (export "pollable" (type $pollable (sub resource)))
  (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
(alias export $poll "pollable" (type $pollable))
(import "wasi:clocks/monotonic-clock@0.2.9" (instance $clock
  (alias outer 1 $pollable (type $outer)) (export "pollable" (type $pollable (eq $outer)))
  (export "subscribe-instant" (func (param "when" u64) (result (own $pollable))))))
(core func $subscribe (canon lower (func $clock "subscribe-instant")))
(core func $block (canon lower (func $poll "[method]pollable.block")))
(core instance $wasi (export "subscribe" (func $subscribe)) (export "block" (func $block)))
(core module $module
  (import "wasi" "subscribe" (func $subscribe (param i64) (result i32)))
  (import "wasi" "block" (func $block (param i32)))
  (func (export "handler") (param i32) (result i32) (call $block (call $subscribe (i64.const -1))) unreachable))
(core instance $guest (instantiate $module (with "wasi" (instance $wasi))))
