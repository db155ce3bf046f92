"""Rules and transactions over repositories, bundles and provenance."""
