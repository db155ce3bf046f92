"""alga:extension/secrets: sealed values of the install (cap:secrets.get), opened one by one when they are asked for.

Attacks it stops: a value travels only in the answer to the call that asks for it, never in what an invocation starts with (T6); a bad
envelope fails that one call (reference §18.9 no. 98); what was given is hidden in what is kept about the invocation (T33).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from registry.domain.ids import InstallId, TenantId
from registry.services.secret_reading import SecretCase, SecretRefusalError
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named, log_refusal
from runnerd.capabilities.results import HostResult, failed, succeeded

__all__ = ["InstallSecrets", "SealedSecrets", "SecretCase", "SecretRefusalError", "secrets_handlers"]

_LOG = logging.getLogger(__name__)
_INTERFACE = "alga:extension/secrets"
_REFUSED = "no secret given: %s"


class SealedSecrets(Protocol):
    """What is asked of `registry.services.secret_reading.SecretReader`; it raises SecretRefusalError."""

    async def read(self, tenant_id: TenantId, install_id: InstallId, name: str) -> str:
        """Return a value."""
        ...

    async def names(self, tenant_id: TenantId, install_id: InstallId) -> tuple[str, ...]:
        """Return the names of all secrets."""
        ...


class InstallSecrets:
    """Secrets of the install behind an invocation, for this capability and for others that use one without showing it to the guest.

    Args:
        sealed: reads and opens.
    """

    def __init__(self, sealed: SealedSecrets) -> None:
        self._sealed = sealed

    async def reveal(self, grant: InvocationGrant, name: str) -> str:
        """Return a value, and have it hidden from now on in what is kept about this invocation.

        Whoever calls this has checked the capability that it serves.

        Raises:
            SecretRefusalError: missing, expired, internal.
        """
        value = await self._sealed.read(grant.tenant_id, grant.install_id, name)
        grant.revealed.add(value)
        return value

    async def names(self, grant: InvocationGrant) -> tuple[str, ...]:
        """Return the names of all secrets, expired ones included.

        Raises:
            SecretRefusalError: internal.
        """
        return await self._sealed.names(grant.tenant_id, grant.install_id)


def secrets_handlers(secrets: InstallSecrets) -> Mapping[int, Handler]:
    """Return the handlers, by number of the function."""

    async def get(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        try:
            return succeeded(await secrets.reveal(grant, str(arguments[0])))
        except SecretRefusalError as refusal:
            log_refusal(_LOG, _REFUSED, refusal, grant)
            return failed(refusal.case)

    async def list_keys(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        del arguments
        try:
            return succeeded(list(await secrets.names(grant)))
        except SecretRefusalError as refusal:
            # The function has no case for it.
            log_refusal(_LOG, _REFUSED, refusal, grant)
            return succeeded([])

    return {function_named(_INTERFACE, "get").number: get, function_named(_INTERFACE, "list-keys").number: list_keys}
