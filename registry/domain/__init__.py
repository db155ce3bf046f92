"""Ids, digests, limits, capability names, records and the error catalog. Standard library only."""
