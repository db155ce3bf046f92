"""The operations endpoints."""
