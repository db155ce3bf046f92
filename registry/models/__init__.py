"""Table models, one table per file: storage shapes, never validators."""
