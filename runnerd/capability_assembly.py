"""Every capability, put together: which module answers which interface, with what behind it, from which section of the settings.

An interface for which the operator gave nothing is not left out: it answers that this runner does not offer it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from registry.database import Database
from registry.secrets.opening import build_opener
from registry.services.events import EventOutbox
from registry.services.measurements import MeasurementRecorder
from registry.services.schedules import ScheduleService
from registry.services.secret_reading import SecretMemory, SecretReader
from registry.services.storage import StorageService
from runnerd.capabilities.broker import CapabilityBroker
from runnerd.capabilities.egress_policy import EgressCeiling
from runnerd.capabilities.events import events_handlers
from runnerd.capabilities.handlers import Handler
from runnerd.capabilities.http import FetchLimits, http_handlers
from runnerd.capabilities.kv import kv_handlers
from runnerd.capabilities.metrics import metrics_handlers
from runnerd.capabilities.platform.api_keys import SecretApiKeys
from runnerd.capabilities.platform.assembly import Platform, PlatformOptions
from runnerd.capabilities.scheduler import scheduler_handlers
from runnerd.capabilities.secrets import InstallSecrets, secrets_handlers
from runnerd.capabilities.settings import settings_handlers
from runnerd.capabilities.storage import storage_handlers
from runnerd.capabilities.unavailable import unavailable_handlers
from runnerd.capabilities.user import user_handlers
from runnerd.config import RunnerdSettings
from runnerd.egress.child import ChildSettings
from runnerd.egress.client import ClientSettings, EgressClient
from runnerd.telemetry.metrics import Metrics

FETCH_GRACE_SECONDS: Final = 3.0
"""A request ends by its own time before the broker ends it."""


async def build_broker(
    settings: RunnerdSettings, database: Database, measurements: MeasurementRecorder, metrics: Metrics, stack: AsyncExitStack
) -> CapabilityBroker:
    """Make the broker, with every capability and what is behind it.

    Args:
        settings: of the daemon.
        database: of role ext_runner.
        measurements: started.
        metrics: of the daemon.
        stack: closes what was made here.

    Raises:
        Exception: what a capability raises whose files or processes are unusable.
    """
    secrets = _secrets(settings, database, stack)
    platform = _platform(settings, secrets)
    stack.push_async_callback(platform.aclose)
    fetching = await _fetching(settings, secrets, metrics, stack)
    storage = StorageService(database, writes_per_install=max(1, settings.database.pool_size // 3))
    return CapabilityBroker(
        (
            settings_handlers(),
            user_handlers(),
            unavailable_handlers("alga:extension/secrets") if secrets is None else secrets_handlers(secrets),
            storage_handlers(storage),
            kv_handlers(storage),
            fetching,
            *platform.handlers(),
            scheduler_handlers(ScheduleService(database)),
            metrics_handlers(measurements),
            events_handlers(EventOutbox(database, settings.events.limits), per_invocation=settings.events.per_invocation),
        ),
        longer=dict.fromkeys(fetching, settings.egress.request_seconds + FETCH_GRACE_SECONDS),
    )


def _secrets(settings: RunnerdSettings, database: Database, stack: AsyncExitStack) -> InstallSecrets | None:
    if settings.secrets is None:
        return None
    opener = build_opener(settings.secrets, refuse_development_keys=settings.is_production)
    memory = SecretMemory(seconds=settings.secrets.memory_seconds, entries=settings.secrets.memory_entries)
    reader = SecretReader(database, opener, memory=memory)
    stack.push_async_callback(reader.aclose)
    return InstallSecrets(reader)


def _platform(settings: RunnerdSettings, secrets: InstallSecrets | None) -> Platform:
    platform = settings.platform
    return Platform(
        PlatformOptions(
            base_url=platform.base_url,
            token_file=platform.token_file,
            proxy_base_url=platform.proxy_base_url,
            proxy_token_file=platform.proxy_token_file,
            ca_file=platform.ca_file,
            production=settings.is_production,
            connect_seconds=platform.connect_seconds,
            call_seconds=platform.call_seconds,
            calls=platform.calls,
            calls_per_install=platform.calls_per_install,
            answer_bytes=platform.answer_bytes,
            proxy_answer_bytes=platform.proxy_answer_bytes,
        ),
        api_keys=None if secrets is None else SecretApiKeys(secrets),
    )


async def _fetching(
    settings: RunnerdSettings, secrets: InstallSecrets | None, metrics: Metrics, stack: AsyncExitStack
) -> Mapping[int, Handler]:
    egress = settings.egress
    if not egress.enabled:
        return unavailable_handlers("alga:extension/http")
    client = EgressClient(
        ChildSettings(
            require_hardening=settings.require_hardening,
            name_servers=egress.name_servers,
            denied_ranges=egress.denied_ranges,
            allowed_ranges=egress.allowed_ranges,
            ca_file=None if egress.ca_file is None else str(egress.ca_file),
            ports=egress.ports,
        ),
        ClientSettings(
            requests=egress.concurrency, requests_per_tenant=egress.concurrency_per_tenant, buffered_bytes=egress.buffered_bytes
        ),
        metrics,
    )
    await client.start()
    stack.push_async_callback(client.aclose)
    return http_handlers(
        client,
        ceiling=EgressCeiling(hosts=egress.hosts, ports=egress.ports, schemes=egress.schemes),
        limits=FetchLimits(
            requests=egress.requests,
            request_bytes=egress.request_bytes,
            response_bytes=egress.response_bytes,
            seconds=egress.request_seconds,
        ),
        metrics=metrics,
        secrets=secrets,
    )
