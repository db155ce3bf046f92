"""What extensions measure: gathered without waiting, added to the registry in batches, read by the tenant (T43).

A value is added to what its daemon has gathered for the series, so that a guest in a loop costs one row, not one for each call; every few
seconds what was gathered is added to the rows, where a fleet of daemons adds up. What the database has is what counts: a series that this
daemon let in and another had no room for is refused at the next batch, and its values are dropped and counted.

While the database is away values go on being gathered, within a bound. Lost is what a daemon had gathered when it was killed (at most
`flush_interval`, and the outage before it), and a batch of which nobody knows whether it was committed: it is not repeated, because a
counter that misses a little is better than one that counts twice.

    MeasurementRefusalError   one of the cases that the guest's world knows, with a sentence for the log
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import InstallId, TenantId
from registry.domain.measurements import (
    Admission,
    Change,
    Changes,
    Measurement,
    MeasurementError,
    MeasurementKind,
    Series,
    SeriesBook,
    checked_value,
    first_change,
    merged,
    series_of,
)
from registry.repositories.audit import AuditRepository
from registry.repositories.installs import InstallRepository
from registry.repositories.measurements import MeasurementRepository
from registry.services.refusals import no_such_install

FLUSH_SECONDS: Final = 10.0
MAX_GATHERED: Final = 20_000
"""Series that wait in one daemon, about a kilobyte each."""
_TENANTS_SHARE: Final = 4
"""One tenant may hold this fraction of them."""
_BATCH_DEADLINE_SECONDS: Final = 5.0
_REMEMBERED_SECONDS: Final = 60.0
"""For how long an install's series are remembered here; then the database is asked again what there is room for."""
_log = logging.getLogger(__name__)

Place = tuple[TenantId, InstallId]


class MeasurementCase(StrEnum):
    """The cases of the guest's `metric-error`."""

    INVALID = "invalid"
    QUOTA_EXCEEDED = "quota-exceeded"
    INTERNAL = "internal"


class MeasurementRefusalError(Exception):
    """A typed refusal. `case` goes to the guest, `detail` to the log."""

    def __init__(self, case: MeasurementCase, detail: str) -> None:
        super().__init__(f"{case}: {detail}")
        self.case = case
        self.detail = detail


class Loss(StrEnum):
    """Why gathered values did not reach the registry."""

    REFUSED = "refused"
    """The install has no room for the series, or is gone."""
    UNCERTAIN = "uncertain"
    """Nobody knows whether the batch was committed."""
    SHUTDOWN = "shutdown"


@dataclass(slots=True)
class _Install:
    """What this daemon knows of an install's series, and what waits to be written."""

    since: float
    book: SeriesBook = field(default_factory=SeriesBook)
    refused: dict[Series, Admission] = field(default_factory=dict)
    """By the database: the book lets them in, the fleet does not."""
    changes: dict[Series, Change] = field(default_factory=dict)

    def admit(self, series: Series) -> Admission:
        return self.refused.get(series) or self.book.admit(series)


def _nothing(_loss: Loss, _series: int) -> None:
    """Count nothing."""


class MeasurementRecorder:
    """Takes values without waiting and adds them soon. Role ext_runner; one event loop.

    Args:
        database: of role ext_runner.
        flush_interval: seconds between batches; each costs a transaction for every install that measured something.
        on_lost: told how many series lost values, and why.
        max_gathered: series that may wait.
    """

    def __init__(
        self,
        database: Database,
        *,
        flush_interval: float = FLUSH_SECONDS,
        on_lost: Callable[[Loss, int], None] = _nothing,
        max_gathered: int = MAX_GATHERED,
    ) -> None:
        self._database = database
        self._flush_interval = flush_interval
        self._on_lost = on_lost
        self._max_gathered = max_gathered
        self._installs: dict[Place, _Install] = {}
        self._gathered: dict[TenantId, int] = {}
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def gathered(self) -> int:
        """Series that wait to be written."""
        return sum(self._gathered.values())

    def record(  # noqa: PLR0913 - a value, and whose it is
        self,
        tenant_id: TenantId,
        install_id: InstallId,
        *,
        kind: MeasurementKind,
        name: str,
        value: float,
        labels: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Take a value. Never waits.

        Args:
            tenant_id: from the resolved call.
            install_id: from the resolved call.
            kind: what the guest called.
            name: as the guest gave it.
            value: what a counter grows by, what a gauge is, what a histogram counts.
            labels: names and values as the guest gave them, in any order.

        Raises:
            MeasurementRefusalError: invalid (grammar, value, or another kind has the name), quota-exceeded (the install has all the names
                or series it may have), internal (too much waits to be written).
        """
        try:
            value, series = checked_value(kind, value), series_of(kind, name, labels)
        except MeasurementError as error:
            raise MeasurementRefusalError(MeasurementCase.INVALID, str(error)) from error
        now = time.monotonic()
        install = self._installs.setdefault((tenant_id, install_id), _Install(now))
        match install.admit(series):
            case Admission.OTHER_KIND:
                raise MeasurementRefusalError(MeasurementCase.INVALID, "the name belongs to a series of another kind")
            case Admission.FULL:
                raise MeasurementRefusalError(MeasurementCase.QUOTA_EXCEEDED, "the install has all the names or series it may have")
        change = first_change(kind, value, datetime.now(UTC))
        earlier = install.changes.get(series)
        if earlier is None:
            self._take_room(tenant_id)
            install.changes[series] = change
        else:
            install.changes[series] = merged(kind, earlier, change)

    def _take_room(self, tenant_id: TenantId) -> None:
        held = self._gathered.get(tenant_id, 0)
        if self.gathered >= self._max_gathered or held >= max(1, self._max_gathered // _TENANTS_SHARE):
            raise MeasurementRefusalError(MeasurementCase.INTERNAL, "too many series wait to be written")
        self._gathered[tenant_id] = held + 1

    async def start(self) -> None:
        """Begin writing."""
        if self._task is None:
            self._task = asyncio.create_task(self._write_forever(), name="measurement-recorder")

    async def aclose(self, *, timeout_seconds: float = 5.0) -> int:
        """Write what waits, for at most `timeout_seconds`, and stop. Return how many series could not be written."""
        self._closing.set()
        if self._task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._task, timeout_seconds)
            self._task = None
        if left := self.gathered:
            self._lost(Loss.SHUTDOWN, left)
        return left

    async def flush(self) -> None:
        """Write what waits now; what cannot be written waits on. Forget what nobody measured for a while."""
        for place, install in list(self._installs.items()):
            if install.changes and not await self._write_install(place, install):
                return
        now = time.monotonic()
        for place, install in list(self._installs.items()):
            if not install.changes and now - install.since >= _REMEMBERED_SECONDS:
                del self._installs[place]

    async def _write_forever(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._flush_interval)
            await self.flush()
            if self._closing.is_set():
                return

    async def _write_install(self, place: Place, install: _Install) -> bool:
        """Add what an install has gathered. Return False where the database is away: then it waits on."""
        changes, install.changes = install.changes, {}
        written = _Written()
        try:
            await self._write(place, changes, written)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it must not stop the recorder
            is_away = isinstance(exc, RefusalError) and exc.reason is Reason.REGISTRY_UNAVAILABLE
            if is_away and not written.sent:
                self._put_back(place[0], install, changes)
                return False
            self._give_room(place[0], len(changes))
            _log.warning("measurements not written: %s", type(exc).__name__, extra={"tenant_id": place[0], "install_id": place[1]})
            self._lost(Loss.UNCERTAIN if is_away else Loss.REFUSED, len(changes))
            return not is_away
        except BaseException:
            self._put_back(place[0], install, changes)
            raise
        self._give_room(place[0], len(changes))
        install.refused |= written.refused
        if written.refused:
            self._lost(Loss.REFUSED, len(written.refused))
        return True

    async def _write(self, place: Place, changes: Changes, written: _Written) -> None:
        tenant_id, install_id = place
        async with self._database.tenant_session(tenant_id, deadline_seconds=_BATCH_DEADLINE_SECONDS) as session:
            measurements = MeasurementRepository(session, tenant_id)
            if not await measurements.lock(install_id):
                written.refused = dict.fromkeys(changes, Admission.FULL)
                return
            book = SeriesBook(one.series for one in await measurements.list_measurements(install_id))
            verdicts = {series: book.admit(series) for series in changes}
            await measurements.add(install_id, {series: changes[series] for series, said in verdicts.items() if said is Admission.ADMITTED})
            written.refused = {series: said for series, said in verdicts.items() if said is not Admission.ADMITTED}
            # From here on only the commit is missing, and whoever loses the connection now cannot know whether it came through.
            written.sent = True

    def _put_back(self, tenant_id: TenantId, install: _Install, changes: Changes) -> None:
        """Let what could not be written wait on, with what came meanwhile."""
        for series, earlier in changes.items():
            later = install.changes.get(series)
            if later is not None:
                self._give_room(tenant_id, 1)
            install.changes[series] = earlier if later is None else merged(series.kind, earlier, later)

    def _give_room(self, tenant_id: TenantId, series: int) -> None:
        held = self._gathered[tenant_id] - series
        if held:
            self._gathered[tenant_id] = held
        else:
            del self._gathered[tenant_id]

    def _lost(self, loss: Loss, series: int) -> None:
        self._on_lost(loss, series)
        _log.warning("measurements lost: %s, %d series", loss.value, series)


@dataclass(slots=True)
class _Written:
    """How far a batch came."""

    sent: bool = False
    refused: dict[Series, Admission] = field(default_factory=dict)


class MeasurementQuery:
    """Reads and forgets what an install measured. Role ext_admin."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_measurements(self, tenant_id: TenantId | str, install_id: str) -> tuple[Measurement, ...]:
        """Return every series of an install: at most 100, by name and labels.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED (also for another tenant's), INVALID_REQUEST, REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            await _installed(InstallRepository(session, tenant_id), install_id)
            return await MeasurementRepository(session, tenant_id).list_measurements(InstallId(install_id))

    async def forget(self, tenant_id: TenantId | str, install_id: str, *, actor: str) -> int:
        """Delete an install's series, so that names, kinds and room are free again; return how many there were.

        Raises:
            RefusalError: as `list_measurements`.
        """
        async with self._database.tenant_session(tenant_id) as session:
            await _installed(InstallRepository(session, tenant_id), install_id)
            forgotten = await MeasurementRepository(session, tenant_id).forget(InstallId(install_id))
            audit = AuditRepository(session, TenantId(tenant_id))
            await audit.record(actor=actor, action="install.forget_metrics", subject=install_id, detail={"series": forgotten})
        return forgotten


async def _installed(installs: InstallRepository, install_id: str) -> None:
    if await installs.find(install_id) is None:
        raise no_such_install()
