"""Fixtures of every integration test: a real PostgreSQL."""

from __future__ import annotations

from tests.fakes.postgres import (
    admin_database,
    database_urls,
    module_database_urls,
    postgres_cluster,
    private_database_urls,
    runner_database,
)

__all__ = ["admin_database", "database_urls", "module_database_urls", "postgres_cluster", "private_database_urls", "runner_database"]
