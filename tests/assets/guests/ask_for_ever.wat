;; Asks extrunner:host/config for a key without end.
(import "extrunner:host/config@0.1.0" (instance $config (export "get" (func (param "key" string) (result (option string))))))
(core func $get (canon lower (func $config "get") (memory $memory) (realloc $realloc)))
(core instance $config-core (export "get" (func $get)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "config" "get" (func $get (param i32 i32 i32)))
  (func (export "handler") (param i32) (result i32)
    (loop $more (call $get (i32.const 64) (i32.const 0) (i32.const 96)) (br $more)) unreachable))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "config" (instance $config-core))))
