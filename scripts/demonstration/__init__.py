"""What `scripts/demo` runs: the whole product, once through its front doors, every shown fact checked."""
