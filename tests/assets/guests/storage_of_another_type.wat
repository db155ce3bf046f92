;; Imports storage.delete with a number where the world has a string.
(import "alga:extension/storage" (instance $storage (export "delete" (func (param "namespace" u32) (param "key" string)))))
(core func $delete (canon lower (func $storage "delete") (memory $memory)))
(core instance $storage-core (export "delete" (func $delete)))
(core module $module
  (import "support" "memory" (memory 1))
  (import "storage" "delete" (func $delete (param i32 i32 i32)))
  (func (export "handler") (param i32) (result i32) (call $delete (i32.const 1) (i32.const 64) (i32.const 3)) unreachable))
(core instance $guest (instantiate $module (with "support" (instance $support)) (with "storage" (instance $storage-core))))
