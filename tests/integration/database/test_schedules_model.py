"""Schedules against a dictionary: whatever two installs do in whatever order, both say the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from registry.database import Database
from registry.migrations.roles import ADMIN, RUNNER
from registry.services.schedule_administration import ScheduleAdministration
from registry.services.schedules import ScheduleCase, ScheduleLimits, ScheduleRefusalError, ScheduleService, ScheduleWish
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, install, new_version, publish

_GRANTED = ("scheduler.manage",)
_ENDPOINTS = ({"method": "POST", "path": "/a", "schedulable": True}, {"method": "GET", "path": "/b", "schedulable": True})
_LIMITS = ScheduleLimits(schedules=3, changes_per_minute=1_000_000, payload_bytes=12)
_GOOD = {
    "endpoint": {"POST /a": ("POST", "/a"), "/b": ("GET", "/b")},
    "cron": {"0 3 * * *", "*/5 * * * *"},
    "timezone": {"UTC", "Asia/Tokyo"},
}
_WISHES = st.builds(
    ScheduleWish,
    endpoint=st.sampled_from([None, "POST /a", "/b", "/none"]),
    cron=st.sampled_from([None, "0 3 * * *", "*/5 * * * *", "* * * * *"]),
    timezone=st.sampled_from([None, "UTC", "Asia/Tokyo", "Mars/Base"]),
    enabled=st.sampled_from([None, True, False]),
    name=st.sampled_from([None, "", "x", "y"]),
    payload=st.sampled_from([None, "", "[1]", '["é1234"]', "1"]),
)


@dataclass(frozen=True, slots=True)
class Kept:
    """What the model keeps of a schedule."""

    endpoint: tuple[str, str]
    cron: str
    timezone: str = "UTC"
    enabled: bool = True
    name: str | None = None
    payload: str | None = None
    stopped: bool = False


@pytest.fixture(scope="module")
def installs(module_database_urls: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    async def prepare() -> tuple[tuple[str, str], ...]:
        admin = await Database.connect(module_database_urls[ADMIN], expected_role=ADMIN)
        await publish(admin, new_version(capabilities=_GRANTED, endpoints=_ENDPOINTS))
        views = [await install(admin, tenant, granted=_GRANTED) for tenant in (TENANT, OTHER_TENANT)]
        await admin.aclose()
        return tuple((view.tenant_id, view.install_id) for view in views)

    return asyncio.run(prepare())


def _invalid(wish: ScheduleWish) -> set[str]:
    wrong = {name for name, good in _GOOD.items() if getattr(wish, name) not in {None, *good}}
    return wrong | ({"payload"} if wish.payload == "1" else set())


def _after(before: Kept, wish: ScheduleWish) -> Kept:
    endpoints: dict[str, tuple[str, str]] = dict(_GOOD["endpoint"])  # type: ignore[arg-type]
    changed: dict[str, Any] = {} if wish.endpoint is None else {"endpoint": endpoints[wish.endpoint]}
    changed |= {name: value for name in ("cron", "timezone", "enabled") if (value := getattr(wish, name)) is not None}
    changed |= {name: value or None for name in ("name", "payload") if (value := getattr(wish, name)) is not None}
    return replace(before, **changed)


class Schedules(RuleBasedStateMachine):
    """Two tenants' installs of one extension, one model for each."""

    ids: Bundle[str] = Bundle("ids")
    urls: Mapping[str, str]
    installs: tuple[tuple[str, str], ...]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        database = self.runner.run(Database.connect(self.urls[RUNNER], expected_role=RUNNER, pool_size=1))
        admin = self.runner.run(Database.connect(self.urls[ADMIN], expected_role=ADMIN, pool_size=1))
        self.databases = (database, admin)
        self.service, self.administration = ScheduleService(database, _LIMITS), ScheduleAdministration(admin)
        self.models: tuple[dict[str, Kept], dict[str, Kept]] = ({}, {})

    def teardown(self) -> None:
        for (tenant, install_id), model in zip(self.installs, self.models, strict=True):
            for schedule_id in model:
                self.runner.run(self.service.delete(tenant, install_id, schedule_id))
        for database in self.databases:
            self.runner.run(database.aclose())
        self.runner.close()

    def refusal_of(self, attempt: Any) -> tuple[ScheduleCase | None, set[str], Any]:
        try:
            return None, set(), self.runner.run(attempt)
        except ScheduleRefusalError as refusal:
            return refusal.case, set(refusal.fields), None

    def expected(
        self, model: dict[str, Kept], wish: ScheduleWish, problems: set[str], *, but: str | None
    ) -> tuple[ScheduleCase | None, set[str]]:
        others = [kept for schedule_id, kept in model.items() if schedule_id != but]
        if wish.name and wish.name in {kept.name for kept in others}:
            problems = problems | {"name"}
        if problems:
            return ScheduleCase.VALIDATION_FAILED, problems
        size = sum(len((kept.payload or "").encode()) for kept in others) + len((wish.payload or "").encode())
        return (ScheduleCase.QUOTA_EXCEEDED, set()) if wish.payload and size > _LIMITS.payload_bytes else (None, set())

    @rule(target=ids, which=st.integers(0, 1), wish=_WISHES)
    def create(self, which: int, wish: ScheduleWish) -> Any:
        model = self.models[which]
        problems = _invalid(wish) | {name for name in ("endpoint", "cron") if getattr(wish, name) is None}
        case, fields = self.expected(model, wish, problems, but=None)
        if len(model) == _LIMITS.schedules:
            case, fields = ScheduleCase.QUOTA_EXCEEDED, set()
        refused, wrong, made = self.refusal_of(self.service.create(*self.installs[which], wish))
        assert (refused, wrong) == (case, fields), wish
        if made is None:
            return multiple()
        model[made.schedule_id] = _after(Kept(endpoint=("", ""), cron=""), wish)
        return made.schedule_id

    @rule(which=st.integers(0, 1), schedule_id=ids, wish=_WISHES)
    def update(self, which: int, schedule_id: str, wish: ScheduleWish) -> None:
        model = self.models[which]
        before = model.get(schedule_id)
        if before is None:
            case, fields = ScheduleCase.NOT_FOUND, set[str]()
        else:
            problems = _invalid(wish) | ({"enabled"} if wish.enabled and before.stopped else set())
            expected, fields = self.expected(model, wish, problems, but=schedule_id)
            case = expected  # type: ignore[assignment]
        refused, wrong, _ = self.refusal_of(self.service.update(*self.installs[which], schedule_id, wish))
        assert (refused, wrong) == (case, fields), wish
        if before is not None and refused is None:
            model[schedule_id] = _after(before, wish)

    @rule(which=st.integers(0, 1), schedule_id=ids)
    def delete(self, which: int, schedule_id: str) -> None:
        known = self.models[which].pop(schedule_id, None) is not None
        refused, _, _ = self.refusal_of(self.service.delete(*self.installs[which], schedule_id))
        assert refused is (None if known else ScheduleCase.NOT_FOUND)

    @rule(which=st.integers(0, 1), schedule_id=ids, enabled=st.booleans())
    def administer(self, which: int, schedule_id: str, enabled: bool) -> None:
        model, (tenant, install_id) = self.models[which], self.installs[which]
        if schedule_id not in model:
            return
        self.runner.run(self.administration.set_enabled(tenant, install_id, schedule_id, enabled=enabled, actor="ada"))
        kept = model[schedule_id]
        model[schedule_id] = replace(kept, stopped=not enabled, enabled=kept.enabled or enabled)

    @invariant()
    def both_say_the_same(self) -> None:
        for (tenant, install_id), model in zip(self.installs, self.models, strict=True):
            found = self.runner.run(self.service.list_schedules(tenant, install_id))
            assert {
                one.schedule_id: Kept(
                    endpoint=(one.endpoint_method, one.endpoint_path),
                    cron=one.cron,
                    timezone=one.timezone,
                    enabled=one.enabled,
                    name=one.name,
                    payload=one.payload,
                    stopped=one.stopped_by is not None,
                )
                for one in found
            } == model
            assert [one.schedule_id for one in found] == list(model), "the oldest first"
            assert all(one.is_active is (one.enabled and one.stopped_by is None) for one in found)


def test_schedules__any_steps__do_what_a_dictionary_with_limits_would(
    module_database_urls: Mapping[str, str], installs: tuple[tuple[str, str], ...]
) -> None:
    machine = type("Bound", (Schedules,), {"urls": module_database_urls, "installs": installs})
    bounds = settings(max_examples=5, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=bounds)
