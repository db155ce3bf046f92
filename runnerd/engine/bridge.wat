;; The bridge: what runnerd/engine/compose.py puts around an author's component so that bodies cross at memory speed.
;;
;; A component's memory is invisible to its host, and the one value that the engine copies in bulk is a string, which must be UTF-8. So images of
;; this memory cross as strings of hexadecimal digits, sixteen bytes at a time; a body that is all ASCII crosses as it is. Addresses in an image
;; are absolute: what the host sends lands at BASE, 1024.
;;
;; Memory:  16 strings that are returned · 32 a string that was answered · 1024 images, one after the other
;;
;; Three core modules, each between its name and the next; compose.py wires them. `arena` is instantiated twice, around the handler and around
;; the host calls, because a component instance cannot be entered again while it waits for its guest.

;; module arena
(module
  ;; 160 MiB hold a request and a response of 32 MiB each, both in digits; a guest that answers more fills no more than this.
  (memory (export "memory") 1 2560)
  (global $top (export "top") (mut i32) (i32.const 1024))

  ;; The canonical ABI's realloc, a bump allocator: everything lies in one piece from BASE to $top, and nothing is given back before the end.
  (func $realloc (export "realloc") (param $old i32) (param $old-size i32) (param $align i32) (param $size i32) (result i32)
    (local $start i32)
    (local $end i32)
    ;; The newest part grows and shrinks in place.
    (if (i32.and (i32.ne (local.get $old) (i32.const 0))
          (i32.eq (i32.add (local.get $old) (local.get $old-size)) (global.get $top)))
      (then (local.set $start (local.get $old)))
      (else
        (local.set $start
          (i32.and (i32.add (global.get $top) (i32.sub (local.get $align) (i32.const 1))) (i32.sub (i32.const 0) (local.get $align))))))
    (local.set $end (i32.add (local.get $start) (local.get $size)))
    (if (i32.or (i32.lt_u (local.get $start) (i32.const 1024)) (i32.lt_u (local.get $end) (local.get $start)))
      (then (call $fail)))
    ;; Sixty-four bytes more than are needed: `decode` and `encode` step over the end of their part.
    (if (i32.gt_u (local.get $end) (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 64)))
      (then
        (if (i32.eq (i32.const -1)
              (memory.grow (i32.add (i32.const 1)
                (i32.shr_u (i32.sub (local.get $end) (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 64))) (i32.const 16)))))
          (then (call $fail)))))
    (if (i32.and (i32.ne (local.get $old) (i32.const 0)) (i32.ne (local.get $old) (local.get $start)))
      (then
        (memory.copy (local.get $start) (local.get $old)
          (select (local.get $size) (local.get $old-size) (i32.lt_u (local.get $size) (local.get $old-size))))))
    (global.set $top (local.get $end))
    (local.get $start))

  ;; End for want of memory. A function that the engine calls while it copies may not call the host, so this is a fault at an address that
  ;; runnerd/engine/outcomes.py knows.
  (func $fail (drop (i32.load (i32.const 0xfffffff0))))

  ;; For what the host answers: it lands at BASE, over the question, which has been read by then.
  (func (export "realloc-answer") (param $old i32) (param $old-size i32) (param $align i32) (param $size i32) (result i32)
    (if (i32.eqz (local.get $old)) (then (global.set $top (i32.const 1024))))
    (call $realloc (local.get $old) (local.get $old-size) (local.get $align) (local.get $size)))

  ;; After the guest has taken an answer.
  (func (export "reset") (param i32) (global.set $top (i32.const 1024)))

  ;; Stands in for `pages` where the author's memories cannot be measured.
  (func (export "unknown") (result i32) (i32.const -1))

  ;; Make bytes of $length hexadecimal digits (lower case), in place: the output never overtakes the input. Writes up to 15 bytes too many.
  (func (export "decode") (param $start i32) (param $length i32)
    (local $in i32)
    (local $out i32)
    (local $end i32)
    (local.set $in (local.get $start))
    (local.set $out (local.get $start))
    (local.set $end (i32.add (local.get $start) (local.get $length)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $in) (local.get $end)))
        (v128.store align=1 (local.get $out)
          (i8x16.narrow_i16x8_u
            (call $pairs (v128.load align=1 (local.get $in)))
            (call $pairs (v128.load offset=16 align=1 (local.get $in)))))
        (local.set $in (i32.add (local.get $in) (i32.const 32)))
        (local.set $out (i32.add (local.get $out) (i32.const 16)))
        (br $next))))

  ;; Eight pairs of digits as eight numbers.
  (func $pairs (param $digits v128) (result v128)
    (local.set $digits
      (i8x16.sub
        (i8x16.sub (local.get $digits) (i8x16.splat (i32.const 48)))
        (v128.and (i8x16.gt_s (local.get $digits) (i8x16.splat (i32.const 57))) (i8x16.splat (i32.const 39)))))
    (v128.or
      (i16x8.shl (v128.and (local.get $digits) (i16x8.splat (i32.const 15))) (i32.const 4))
      (i16x8.shr_u (local.get $digits) (i32.const 8))))

  ;; Return the address of 2 * $length hexadecimal digits of these bytes, in new memory.
  (func (export "encode") (param $start i32) (param $length i32) (result i32)
    (local $result i32)
    (local $out i32)
    (local $end i32)
    (local $high v128)
    (local $low v128)
    (if (i32.lt_s (local.get $length) (i32.const 0)) (then (call $fail)))
    (local.set $result
      (call $realloc (i32.const 0) (i32.const 0) (i32.const 1) (i32.shl (local.get $length) (i32.const 1))))
    (local.set $out (local.get $result))
    (local.set $end (i32.add (local.get $start) (local.get $length)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $start) (local.get $end)))
        (local.set $low (v128.load align=1 (local.get $start)))
        (local.set $high
          (i8x16.swizzle (v128.const i8x16 48 49 50 51 52 53 54 55 56 57 97 98 99 100 101 102)
            (i8x16.shr_u (local.get $low) (i32.const 4))))
        (local.set $low
          (i8x16.swizzle (v128.const i8x16 48 49 50 51 52 53 54 55 56 57 97 98 99 100 101 102)
            (v128.and (local.get $low) (i8x16.splat (i32.const 15)))))
        (v128.store align=1 (local.get $out)
          (i8x16.shuffle 0 16 1 17 2 18 3 19 4 20 5 21 6 22 7 23 (local.get $high) (local.get $low)))
        (v128.store offset=16 align=1 (local.get $out)
          (i8x16.shuffle 8 24 9 25 10 26 11 27 12 28 13 29 14 30 15 31 (local.get $high) (local.get $low)))
        (local.set $start (i32.add (local.get $start) (i32.const 16)))
        (local.set $out (i32.add (local.get $out) (i32.const 32)))
        (br $next)))
    (local.get $result))

  ;; Tell whether all these bytes are ASCII.
  (func (export "is-ascii") (param $start i32) (param $length i32) (result i32)
    (local $end i32)
    (local $seen v128)
    (local.set $end (i32.add (local.get $start) (i32.and (local.get $length) (i32.const -16))))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $start) (local.get $end)))
        (local.set $seen (v128.or (local.get $seen) (v128.load align=1 (local.get $start))))
        (local.set $start (i32.add (local.get $start) (i32.const 16)))
        (br $next)))
    (local.set $end (i32.add (local.get $end) (i32.and (local.get $length) (i32.const 15))))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $start) (local.get $end)))
        (local.set $seen (v128.or (local.get $seen) (i8x16.splat (i32.load8_u (local.get $start)))))
        (local.set $start (i32.add (local.get $start) (i32.const 1)))
        (br $next)))
    (i32.eqz (i8x16.bitmask (local.get $seen)))))

;; module run
;; run(head, body): head is an image in digits, at BASE: five words, then a lowered execute-request. The words say where the request begins, how
;; the body is written (0 as it is, 1 in digits), and what is allowed: bytes of the response's body, its headers, bytes of its image without the
;; body. body follows in memory.
;; Returns head and body alike: two words (pages of the author's memory at the end, or -1 where that is not known; how the body is written),
;; then the lowered execute-response, then what it points to. Its base is where the request's body, no longer in digits, ended, rounded up to 8.
(module
  (import "arena" "memory" (memory 1 2560))
  (import "arena" "top" (global $top (mut i32)))
  (import "arena" "realloc" (func $realloc (param i32 i32 i32 i32) (result i32)))
  (import "arena" "decode" (func $decode (param i32 i32)))
  (import "arena" "encode" (func $encode (param i32 i32) (result i32)))
  (import "arena" "is-ascii" (func $is-ascii (param i32 i32) (result i32)))
  (import "host" "refuse" (func $refuse (param i32 i32)))
  (import "author" "handler" (func $handler (param i32 i32)))
  (import "author" "pages" (func $pages (result i32)))
  (func (export "run") (param $head i32) (param $head-length i32) (param $body i32) (param $body-length i32) (result i32)
    (local $image i32)
    (local $response i32)
    (local $end i32)
    (call $decode (local.get $head) (local.get $head-length))
    (if (i32.load offset=4 (local.get $head))
      (then
        (call $decode (local.get $body) (local.get $body-length))
        (global.set $top (i32.add (local.get $body) (i32.shr_u (local.get $body-length) (i32.const 1))))))
    (local.set $image (call $realloc (i32.const 0) (i32.const 0) (i32.const 8) (i32.const 32)))
    (local.set $response (i32.add (local.get $image) (i32.const 8)))
    (call $handler (i32.load (local.get $head)) (local.get $response))
    ;; execute-response: status u16 at 0 · headers: address at 4, count at 8 · body: presence at 12, address at 16, length at 20
    (if (i32.gt_u (i32.load offset=8 (local.get $response)) (i32.load offset=12 (local.get $head)))
      (then (call $refuse (i32.const 2) (i32.load offset=8 (local.get $response))) (unreachable)))
    (local.set $body (i32.const 0))
    (local.set $body-length (i32.const 0))
    (local.set $end (global.get $top))
    (if (i32.load8_u offset=12 (local.get $response))
      (then
        (local.set $body (i32.load offset=16 (local.get $response)))
        (local.set $body-length (i32.load offset=20 (local.get $response)))
        (if (i32.gt_u (local.get $body-length) (i32.load offset=8 (local.get $head)))
          (then (call $refuse (i32.const 1) (local.get $body-length)) (unreachable)))
        ;; The canonical ABI copies a record's fields in order, so the body comes last; what stands before it is the head.
        (if (local.get $body-length) (then (local.set $end (local.get $body))))))
    (if (i32.or (i32.lt_u (local.get $end) (local.get $response))
          (i32.gt_u (i32.sub (local.get $end) (local.get $image)) (i32.load offset=16 (local.get $head))))
      (then (call $refuse (i32.const 3) (i32.sub (local.get $end) (local.get $image))) (unreachable)))
    (i32.store (local.get $image) (call $pages))
    (if (call $is-ascii (local.get $body) (local.get $body-length))
      (then (i32.store offset=4 (local.get $image) (i32.const 0)))
      (else
        (i32.store offset=4 (local.get $image) (i32.const 1))
        (local.set $body (call $encode (local.get $body) (local.get $body-length)))
        (local.set $body-length (i32.shl (local.get $body-length) (i32.const 1)))))
    (i32.store (i32.const 16) (call $encode (local.get $image) (i32.sub (local.get $end) (local.get $image))))
    (i32.store (i32.const 20) (i32.shl (i32.sub (local.get $end) (local.get $image)) (i32.const 1)))
    (i32.store (i32.const 24) (local.get $body))
    (i32.store (i32.const 28) (local.get $body-length))
    (i32.const 16)))

;; module pages
;; Appended to the author's component: nothing else can tell how large its memory has become.
(module
  (import "author" "memory" (memory 0))
  (func (export "pages") (result i32) (memory.size)))
