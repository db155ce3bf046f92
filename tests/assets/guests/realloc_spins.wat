;; Never answers its caller's wish for memory.
(core module $module
  (memory (export "memory") 1)
  (func (export "realloc") (param i32 i32 i32 i32) (result i32) (loop $more (br $more)) unreachable)
  (func (export "handler") (param i32) (result i32) (i32.store16 (i32.const 16) (i32.const 200)) (i32.const 16)))
(core instance $guest (instantiate $module))
(alias core export $guest "memory" (core memory $own-memory))
(alias core export $guest "realloc" (core func $own-realloc))
(alias core export $guest "handler" (core func $own-handler))
(func $own (param "request" $execute-request) (result $execute-response)
  (canon lift (core func $own-handler) (memory $own-memory) (realloc $own-realloc)))
(export "handler" (func $own))
