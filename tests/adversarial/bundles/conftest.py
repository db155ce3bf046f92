"""A real PostgreSQL, as one of the readers of manifests."""

from __future__ import annotations

from tests.fakes.postgres import module_database_urls, postgres_cluster

__all__ = ["module_database_urls", "postgres_cluster"]
