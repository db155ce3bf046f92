;; Converts a float that no integer can hold.
(core module $module (func (export "handler") (param i32) (result i32) (i32.trunc_f32_s (f32.const nan))))
(core instance $guest (instantiate $module))
