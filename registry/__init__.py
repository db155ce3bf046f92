"""The registry: the record of truth. Tables, services, bundles, provenance, and the command line."""
