"""The admin REST."""
