"""wasmtime: configuration, linker, one invocation, outcomes."""
