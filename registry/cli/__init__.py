"""extctl, the command line for authors and operators."""
