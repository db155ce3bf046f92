;; Makes pollables without end and keeps them.
(import "wasi:io/poll@0.2.9" (instance $poll (export "pollable" (type $pollable (sub resource)))))
(alias export $poll "pollable" (type $pollable))
(import "wasi:clocks/monotonic-clock@0.2.9" (instance $clock
  (alias outer 1 $pollable (type $outer)) (export "pollable" (type $pollable (eq $outer)))
  (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
(core func $subscribe (canon lower (func $clock "subscribe-duration")))
(core instance $wasi (export "subscribe" (func $subscribe)))
(core module $module
  (import "wasi" "subscribe" (func $subscribe (param i64) (result i32)))
  (func (export "handler") (param i32) (result i32) (loop $more (drop (call $subscribe (i64.const 1))) (br $more)) unreachable))
(core instance $guest (instantiate $module (with "wasi" (instance $wasi))))
