;; Ends itself through wasi:cli/exit.
(import "wasi:cli/exit@0.2.9" (instance $cli (export "exit" (func (param "status" (result))))))
(core func $exit (canon lower (func $cli "exit")))
(core instance $wasi (export "exit" (func $exit)))
(core module $module (import "wasi" "exit" (func $exit (param i32)))
  (func (export "handler") (param i32) (result i32) (call $exit (i32.const 1)) unreachable))
(core instance $guest (instantiate $module (with "wasi" (instance $wasi))))
