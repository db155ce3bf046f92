;; Never ends after its answer was taken.
(core module $module
  (import "support" "respond" (func $respond (param i32 i32 i32) (result i32)))
  (func (export "after") (param i32) (loop $more (br $more)))
  (func (export "handler") (param i32) (result i32) (call $respond (i32.const 200) (i32.const 64) (i32.const 0))))
(core instance $guest (instantiate $module (with "support" (instance $support))))
(alias core export $guest "handler" (core func $own-handler))
(alias core export $guest "after" (core func $after))
(func $own (param "request" $execute-request) (result $execute-response)
  (canon lift (core func $own-handler) (memory $memory) (realloc $realloc) (post-return (core func $after))))
(export "handler" (func $own))
