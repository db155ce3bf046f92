;; Asks for 300 MB of random bytes.
(import "wasi:random/random@0.2.9" (instance $random (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
(core func $get (canon lower (func $random "get-random-bytes") (memory $memory) (realloc $realloc)))
(core instance $wasi (export "get" (func $get)))
(core module $module (import "wasi" "get" (func $get (param i64 i32)))
  (func (export "handler") (param i32) (result i32) (call $get (i64.const 300000000) (i32.const 96)) unreachable))
(core instance $guest (instantiate $module (with "wasi" (instance $wasi))))
