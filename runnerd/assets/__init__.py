"""The child process that serves interface files."""
