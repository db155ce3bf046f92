"""The runner daemon and its children."""
