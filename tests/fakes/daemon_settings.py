"""The smallest environment with which the daemon's settings are complete."""

from __future__ import annotations

from pathlib import Path

SECRET = "postgresql+psycopg://ext_runner:hunter2@db.example/extrunner"


def smallest_environment(folder: Path) -> dict[str, str]:
    """Name files in `folder`; none of them is made."""
    return {
        "RUNNERD_TRUST_DOMAINS_FILE": str(folder / "trust_domains.json"),
        "RUNNERD_OBJECT_STORE_URL": f"file://{folder}/bundles%20here",
        "RUNNERD_CACHE_DIR": str(folder / "cache"),
        "RUNNERD_DATABASE__URL_FILE": str(folder / "url"),
        "RUNNERD_SERVICES__JWKS_FILE": str(folder / "services.jwks.json"),
        "RUNNERD_SERVICES__ISSUER": "https://services.test",
        "RUNNERD_ARTIFACTS__KEY_FILE": str(folder / "artifacts.ed25519"),
    }
