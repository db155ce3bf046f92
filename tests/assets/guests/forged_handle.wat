;; Waits for a pollable that it was never given.
(import "wasi:io/poll@0.2.9" (instance $poll
  (export "pollable" (type $pollable (sub resource)))
  (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
(core func $block (canon lower (func $poll "[method]pollable.block")))
(core instance $wasi (export "block" (func $block)))
(core module $module
  (import "wasi" "block" (func $block (param i32)))
  (func (export "handler") (param i32) (result i32) (call $block (i32.const 99)) unreachable))
(core instance $guest (instantiate $module (with "wasi" (instance $wasi))))
