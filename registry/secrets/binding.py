"""What a sealed value belongs to. Its encoding is authenticated with the value, so that an envelope opens in its own place only.

Attack it stops (T6): whoever writes to the database copies the ciphertext of one tenant, install, name or version over another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from registry.domain.ids import InstallId, TenantId

MAX_VALUE_BYTES: Final = 64 * 1024
MAX_SECRETS: Final = 64
"""Of one install."""
_PURPOSE: Final = b"extrunner secret envelope 1"
_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The one place in which a value may be opened."""

    tenant_id: TenantId
    install_id: InstallId
    name: str
    version: int

    def associated_data(self) -> bytes:
        """Return the encoding of all of it: a purpose, then each part behind its length, so that no two bindings read alike."""
        return _encoded(self.tenant_id, self.install_id, self.name, str(self.version))

    def derivation_context(self) -> bytes:
        """Return the encoding of tenant and install, for key services that derive a key for each."""
        return _encoded(self.tenant_id, self.install_id)


def _encoded(*parts: str) -> bytes:
    encoded = [_PURPOSE, *(part.encode() for part in parts)]
    return b"".join(len(part).to_bytes(_LENGTH_BYTES, "big") + part for part in encoded)
