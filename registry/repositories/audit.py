"""The audit log: inserted, never read or changed by the process that writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import insert

from registry.database import Session
from registry.domain.ids import TenantId, new_id
from registry.models import ExtensionAuditLog

PLATFORM: Final = "*"
"""`tenant_id` of what the platform does; no tenant can be called so."""
_MAX_SUBJECT_CHARACTERS: Final = 300


class AuditRepository:
    """Writes to `extension_audit_log` in the transaction of the act, so that neither exists without the other.

    Args:
        session: a tenant's transaction for acts on its things, one without tenant for acts of the platform; the policy refuses the rest.
        tenant_id: None for the platform.
    """

    def __init__(self, session: Session, tenant_id: TenantId | None = None) -> None:
        self._session = session
        self._tenant_id = PLATFORM if tenant_id is None else tenant_id

    async def record(self, *, actor: str, action: str, subject: str, detail: Mapping[str, object] | None = None) -> None:
        """Write one act down. `action` is "<thing>.<verb>"; `detail` holds no secret and no setting's value."""
        # Without RETURNING: the role may insert and not read.
        statement = insert(ExtensionAuditLog).values(
            tenant_id=self._tenant_id,
            id=new_id(),
            actor=actor,
            action=action,
            subject=subject[:_MAX_SUBJECT_CHARACTERS],
            detail=dict(detail or {}),
        )
        await self._session.execute(statement.inline())
