"""Table models, one table per file: storage shapes, never validators."""

from __future__ import annotations

from registry.models.audit_log import ExtensionAuditLog
from registry.models.bundle import ExtensionBundle
from registry.models.denylist import ExtensionDenylist
from registry.models.event import ExtensionEvent
from registry.models.event_subscription import ExtensionEventSubscription
from registry.models.event_usage import ExtensionEventUsage
from registry.models.execution_log import ExtensionExecutionLog
from registry.models.install import TenantExtensionInstall
from registry.models.install_config import TenantExtensionInstallConfig
from registry.models.install_secrets import TenantExtensionInstallSecret
from registry.models.measurement import ExtensionMeasurement
from registry.models.publisher import ExtensionPublisher
from registry.models.publisher_identity import ExtensionPublisherIdentity
from registry.models.quota_usage import ExtensionQuotaUsage
from registry.models.registry_entry import ExtensionRegistryEntry
from registry.models.schedule import ExtensionSchedule
from registry.models.schedule_changes import ExtensionScheduleChanges
from registry.models.storage_record import ExtStorageRecord
from registry.models.storage_usage import ExtStorageUsage
from registry.models.version import ExtensionVersion

__all__ = [
    "ExtStorageRecord",
    "ExtStorageUsage",
    "ExtensionAuditLog",
    "ExtensionBundle",
    "ExtensionDenylist",
    "ExtensionEvent",
    "ExtensionEventSubscription",
    "ExtensionEventUsage",
    "ExtensionExecutionLog",
    "ExtensionMeasurement",
    "ExtensionPublisher",
    "ExtensionPublisherIdentity",
    "ExtensionQuotaUsage",
    "ExtensionRegistryEntry",
    "ExtensionSchedule",
    "ExtensionScheduleChanges",
    "ExtensionVersion",
    "TenantExtensionInstall",
    "TenantExtensionInstallConfig",
    "TenantExtensionInstallSecret",
]
