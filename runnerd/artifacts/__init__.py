"""From a content hash to something that may run: verify, compile, sign, cache."""
