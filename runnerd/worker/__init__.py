"""The process that holds wasmtime."""
