"""Host capabilities: the catalog and the daemon's half of each."""
