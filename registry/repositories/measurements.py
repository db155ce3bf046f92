"""What extensions of one tenant measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import RowMapping, text

from registry.database import Session
from registry.domain.ids import InstallId, TenantId
from registry.domain.measurements import Change, Measurement, MeasurementKind, Series

_EXISTS: Final = text(
    """select 1 from tenant_extension_install i
        where i.tenant_id = :tenant_id and i.id = cast(:install_id as uuid) and i.status <> 'uninstalled'"""
)
# Changes of one install come one after the other, whichever daemon brings them: its bounds hold for the fleet. Until the transaction ends.
_LOCK: Final = text("select pg_advisory_xact_lock(hashtextextended('measurements ' || :tenant_id || ' ' || :install_id, 0))")
_LIST: Final = text(
    """select m.name, m.labels, m.kind, m.value, m.buckets, m.observed_at from extension_measurement m
        where m.tenant_id = :tenant_id and m.install_id = cast(:install_id as uuid) order by m.name, m.labels"""
)
# Arrays of a row each: buckets travel as text, because PostgreSQL flattens an array of arrays.
_ADD: Final = text(
    """
insert into extension_measurement as m (tenant_id, install_id, name, labels, kind, value, buckets, observed_at)
select :tenant_id, cast(:install_id as uuid), r.name, r.labels, r.kind, r.value, cast(r.buckets as bigint[]), r.observed_at
  from unnest(cast(:names as text[]), cast(:labels as text[]), cast(:kinds as text[]), cast(:values as float8[]),
              cast(:buckets as text[]), cast(:observed as timestamptz[])) as r (name, labels, kind, value, buckets, observed_at)
on conflict (tenant_id, install_id, name, labels) do update
   set value = case when m.kind <> 'gauge' then m.value + excluded.value
                    when excluded.observed_at >= m.observed_at then excluded.value else m.value end,
       buckets = (select array_agg(b.had + b.came order by b.place)
                    from unnest(m.buckets, excluded.buckets) with ordinality as b (had, came, place)),
       observed_at = greatest(m.observed_at, excluded.observed_at)
 where m.tenant_id = :tenant_id and m.kind = excluded.kind
"""
)
_DELETE: Final = text("""delete from extension_measurement m where m.tenant_id = :tenant_id and m.install_id = cast(:install_id as uuid)""")


class MeasurementRepository:
    """Table `extension_measurement` of one tenant. Adding: ext_runner; reading and forgetting: ext_admin."""

    def __init__(self, session: Session, tenant_id: TenantId | str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def lock(self, install_id: InstallId) -> bool:
        """Keep others from changing an install's measurements until the transaction ends. Tell whether the tenant has the install."""
        await self._session.execute(_LOCK, self._install(install_id))
        return (await self._session.execute(_EXISTS, self._install(install_id))).first() is not None

    async def list_measurements(self, install_id: InstallId) -> tuple[Measurement, ...]:
        """Return every series of an install, by name and labels."""
        rows = await self._session.execute(_LIST, self._install(install_id))
        return tuple(_measurement(row) for row in rows.mappings())

    async def add(self, install_id: InstallId, changes: Mapping[Series, Change]) -> None:
        """Add to series that the install may have. Only after `lock`."""
        await self._session.execute(_ADD, self._install(install_id) | _columns(changes))

    async def forget(self, install_id: InstallId) -> int:
        """Delete an install's series; return how many there were."""
        return (await self._session.execute(_DELETE, self._install(install_id))).rowcount

    def _install(self, install_id: InstallId) -> dict[str, Any]:
        return {"tenant_id": self._tenant_id, "install_id": install_id}


def _columns(changes: Mapping[Series, Change]) -> dict[str, list[Any]]:
    return {
        "names": [series.name for series in changes],
        "labels": [series.labels_text for series in changes],
        "kinds": [series.kind.value for series in changes],
        "values": [change.value for change in changes.values()],
        "buckets": [None if change.buckets is None else "{" + ",".join(map(str, change.buckets)) + "}" for change in changes.values()],
        "observed": [change.observed_at for change in changes.values()],
    }


def _measurement(row: RowMapping) -> Measurement:
    labels = tuple(sorted(json.loads(row["labels"]).items()))
    return Measurement(
        series=Series(row["name"], MeasurementKind(row["kind"]), labels),
        value=row["value"],
        buckets=None if row["buckets"] is None else tuple(row["buckets"]),
        observed_at=row["observed_at"],
    )
