;; Writes 4 KiB without a line break to its standard output, again and again.
(import "wasi:io/error@0.2.9" (instance $error (export "error" (type $error (sub resource)))))
(alias export $error "error" (type $error))
(import "wasi:io/streams@0.2.9" (instance $streams
  (alias outer 1 $error (type $outer)) (export "error" (type $e (eq $outer)))
  (export "output-stream" (type $stream (sub resource)))
  (type $failure' (variant (case "last-operation-failed" (own $e)) (case "closed")))
  (export "stream-error" (type $failure (eq $failure')))
  (export "[method]output-stream.blocking-write-and-flush"
    (func (param "self" (borrow $stream)) (param "contents" (list u8)) (result (result (error $failure)))))))
(alias export $streams "output-stream" (type $stream))
(import "wasi:cli/stdout@0.2.9" (instance $stdout
  (alias outer 1 $stream (type $outer)) (export "output-stream" (type $stream (eq $outer)))
  (export "get-stdout" (func (result (own $stream))))))
(core func $get (canon lower (func $stdout "get-stdout")))
(core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush") (memory $memory)))
(core instance $wasi (export "get" (func $get)) (export "write" (func $write)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "wasi" "get" (func $get (result i32)))
  (import "wasi" "write" (func $write (param i32 i32 i32 i32)))
  (func (export "handler") (param i32) (result i32)
    (local $stdout i32)
    (local.set $stdout (call $get))
    (memory.fill (i32.const 1024) (i32.const 0x78) (i32.const 4096))
    (loop $more (call $write (local.get $stdout) (i32.const 1024) (i32.const 4096) (i32.const 512)) (br $more))
    unreachable))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "wasi" (instance $wasi))))
