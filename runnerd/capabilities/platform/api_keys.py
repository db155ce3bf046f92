"""The secret `api_key` of an install, for routes at the platform. The guest does not get it; what it logs is rid of it all the same."""

from __future__ import annotations

from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.platform.client import PlatformError
from runnerd.capabilities.platform.ui_proxy import API_KEY_SECRET
from runnerd.capabilities.secrets import InstallSecrets, SecretCase, SecretRefusalError


class SecretApiKeys:
    """Opens it.

    Args:
        secrets: of installs.
    """

    def __init__(self, secrets: InstallSecrets) -> None:
        self._secrets = secrets

    async def find(self, grant: InvocationGrant) -> str | None:
        """Return the key; None where the install has none.

        Raises:
            PlatformError: there is one, and it has expired or cannot be opened.
        """
        try:
            # What no header can hold, a line end above all, is refused where headers are written.
            return await self._secrets.reveal(grant, API_KEY_SECRET)
        except SecretRefusalError as refusal:
            if refusal.case is SecretCase.MISSING:
                return None
            message = f"the secret {API_KEY_SECRET!r} was not given: {refusal.detail}"
            raise PlatformError(message) from refusal
