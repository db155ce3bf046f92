;; Fills 32 MiB of memory without end: bulk operations meet the epoch only at their start.
(core module $module
  (import "support" "memory" (memory 1))
  (func (export "handler") (param i32) (result i32)
    (drop (memory.grow (i32.const 512)))
    (loop $more (memory.fill (i32.const 65536) (i32.const 7) (i32.const 0x2000000)) (br $more)) unreachable))
(core instance $guest (instantiate $module (with "support" (instance $support))))
