"""From an authenticated request to a worker and back."""
