"""`extctl db rewrap-secrets`: after a key for secrets was replaced, everything under the old one goes under the new one.

It opens and seals, so it holds what a daemon holds: run it where a daemon runs. As every verb of `extctl db` it talks to PostgreSQL itself,
as the role ext_maintenance, which can replace wrappings and nothing else of a secret.
"""

from __future__ import annotations

import asyncio
import getpass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from registry.cli.output import UnavailableError, UsageError
from registry.cli.state import read_json
from registry.database import Database, UnsafeDatabaseRoleError
from registry.migrations.roles import MAINTENANCE
from registry.secrets.envelope import KeyServiceError
from registry.secrets.local_keys import SecretKeyError
from registry.secrets.opening import build_opener
from registry.secrets.sealing import build_sealer
from registry.secrets.settings import OpeningSettings, SealingSettings
from registry.services.secret_rotation import RotationReport, rewrap_all

_CONNECTIONS: Final = 1


class RewrapSettings(BaseModel):
    """The file of keys: what opens, as in RUNNERD_SECRETS__…, and what seals, as in GATEWAY_ADMIN__SECRETS__…."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opening: OpeningSettings
    sealing: SealingSettings


def read_rewrap_settings(file: Path) -> RewrapSettings:
    """Read the file of keys.

    Raises:
        UsageError: it cannot be used.
    """
    document = read_json(file)
    try:
        return RewrapSettings.model_validate(document)
    except ValidationError as error:
        rows = error.errors(include_url=False, include_input=False, include_context=False)
        problems = "; ".join(f"{'.'.join(map(str, row['loc'])) or 'file'}: {row['msg']}" for row in rows)
        message = f"{file} cannot be used: {problems}."
        raise UsageError(message) from None


def rewrap(url: str, settings: RewrapSettings) -> RotationReport:
    """Wrap everything anew, as the person who asks.

    Raises:
        UsageError: a key cannot be used, or the database role is another.
        UnavailableError: a key service does not answer; what was done stays.
        RefusalError: the database does not answer.
    """
    try:
        return asyncio.run(_rewrap(url, settings))
    except (SecretKeyError, UnsafeDatabaseRoleError) as error:
        message = f"{error}."
        raise UsageError(message) from error
    except KeyServiceError as error:
        message = f"{error}. What was wrapped anew stays so; run it again."
        raise UnavailableError(message) from error


async def _rewrap(url: str, settings: RewrapSettings) -> RotationReport:
    opener = build_opener(settings.opening, refuse_development_keys=False)
    try:
        sealer = build_sealer(settings.sealing, refuse_development_keys=False)
        try:
            database = await Database.connect(url, expected_role=MAINTENANCE, pool_size=_CONNECTIONS)
            try:
                return await rewrap_all(database, opener, sealer, actor=f"extctl:{getpass.getuser()}")
            finally:
                await database.aclose()
        finally:
            await sealer.aclose()
    finally:
        await opener.aclose()
