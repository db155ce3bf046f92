"""Every function of every interface, called by components of both toolchains against both worlds, granted and not granted."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

import psycopg
import pytest

from registry.domain.capabilities import ALWAYS, PREFIX
from registry.domain.limits import MIB
from registry.migrations.roles import OWNER, libpq_conninfo
from runnerd.capabilities.catalog import FUNCTIONS, HostFunction
from tests.fakes.dispatch_kit import OTHER_TENANT
from tests.fakes.probe_guests import GUESTS, Answer, ProbeGuest
from tests.fakes.probe_servers import UNICODE
from tests.fakes.probe_table import SCENARIOS, Probe, Scenario, Surroundings, asks, denial_of
from tests.integration.guests.conftest import Probed

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900), pytest.mark.xdist_group("probing guests")]
EVERYTHING = [probe for scenario in SCENARIOS.values() for probe in scenario(Surroundings())]


def of_world(guest: ProbeGuest, probes: list[Probe]) -> list[Probe]:
    return [probe for probe in probes if guest.imports(probe.function)]


def functions_of(scenario: Scenario) -> list[HostFunction]:
    return [probe.function for probe in scenario(Surroundings())]


ASKED = [(guest, name) for guest in GUESTS for name, scenario in SCENARIOS.items() if all(map(guest.imports, functions_of(scenario)))]


def short(value: object) -> str:
    return value.name.removeprefix("com.example.probe-") if isinstance(value, ProbeGuest) else str(value)


def differences(probes: Sequence[Probe], answers: Sequence[Answer]) -> str:
    """Return what was answered otherwise than expected, each cut to what a person reads."""
    wrong = [(probe, answer) for probe, answer in zip(probes, answers, strict=True) if answer != probe.answer]
    return "\n".join(
        f"{probe.function.name}{reprlib.repr(probe.arguments)}\n  {str(probe.answer)[:600]} expected\n  {str(answer)[:600]} answered"
        for probe, answer in wrong
    )


by_guest = pytest.mark.parametrize("guest", GUESTS, ids=short)


async def test_table__asks_every_function_of_the_catalog() -> None:
    assert {probe.function.qualified_name for probe in EVERYTHING} == {function.qualified_name for function in FUNCTIONS}


NEEDING_THE_DATABASE = [
    probe
    for probe in EVERYTHING
    if probe.function.interface.endswith(("/storage", "/kv")) and probe.answer.error in {None, "missing"} and probe.arguments[-1] != []
]
NEVER = {
    "http.fetch": "internal",
    "storage.get": "conflict",
    "storage.put": "missing",
    "storage.delete": "conflict",
    "storage.list-entries": "missing conflict",
    "kv.get": "conflict quota-exceeded",
    "kv.put": "missing",
    "kv.delete": "quota-exceeded",
    "kv.list": "missing conflict quota-exceeded",
    "kv.put-many": "missing conflict",
    "events.publish": "internal",
    **dict.fromkeys(("metrics.counter-add", "metrics.gauge-set", "metrics.histogram-record"), "internal"),
    **dict.fromkeys(("scheduler.list-schedules", "scheduler.get-endpoints"), "not-found validation-failed quota-exceeded internal"),
    "scheduler.get-schedule": "validation-failed quota-exceeded internal",
}
"""Cases that a function's type has and no guest can bring about here: they are those of other functions, or failures of ours."""


async def test_table__asks_for_every_error_that_a_guest_can_bring_about() -> None:
    told = {(probe.function.number, probe.answer.error) for probe in EVERYTHING}
    told |= {(probe.function.number, "internal") for probe in NEEDING_THE_DATABASE}
    told |= {(function.number, str(function.denied)) for function in FUNCTIONS}
    left = {
        function.qualified_name.partition("/")[2]: {case for case in function.error.cases if (function.number, case) not in told}
        for function in FUNCTIONS
        if function.error is not None
    }
    assert {name: cases for name, cases in left.items() if cases} == {name: set(cases.split()) for name, cases in NEVER.items()}


@by_guest
async def test_database_that_fails__is_internal(probed: Probed, guest: ProbeGuest) -> None:
    asked = of_world(guest, NEEDING_THE_DATABASE)
    internal = [Probe(function=probe.function, arguments=probe.arguments, answer=Answer(error="internal")) for probe in asked]
    with psycopg.connect(libpq_conninfo(probed.daemon.machine.urls[OWNER]), autocommit=True) as owner:
        owner.execute("alter table ext_storage_record rename to away")
        try:
            told = await probed.ask(guest, internal)
        finally:
            owner.execute("alter table away rename to ext_storage_record")
    assert differences(internal, told.answers) == ""


@pytest.mark.parametrize(("guest", "name"), ASKED, ids=short)
async def test_granted__answers_what_the_table_says(probed: Probed, guest: ProbeGuest, name: str) -> None:
    probes = SCENARIOS[name](probed.around(guest))
    told = await probed.ask(guest, probes, user=name != "nobody")
    assert differences(probes, told.answers) == ""


@by_guest
async def test_not_granted__every_function_answers_its_denial_and_the_record_explains_it(probed: Probed, guest: ProbeGuest) -> None:
    always = [probe for probe in of_world(guest, EVERYTHING) if probe.function.capability not in ALWAYS]
    probes = [Probe(function=probe.function, arguments=probe.arguments, answer=denial_of(probe.function)) for probe in always]
    told = await probed.ask(guest, probes, tenant=OTHER_TENANT)
    wrong = [(probe.function.qualified_name, answer) for probe, answer in zip(probes, told.answers, strict=True) if answer != probe.answer]
    assert wrong == []

    record = await probed.record_of(told, OTHER_TENANT)
    explained = {denial["capability"]: denial for denial in record.denials}
    assert explained.keys() == {PREFIX + probe.function.capability for probe in probes}
    for name, denial in explained.items():
        assert denial["why"] == "not_granted"
        assert denial["change"] == f'An administrator of the tenant grants "{name}" to this install.'


@by_guest
async def test_integers__beyond_what_a_double_holds__are_exact(probed: Probed, guest: ProbeGuest) -> None:
    entry = {"namespace": "wide", "key": "k", "value": b"", "revision": None}
    await probed.ask(guest, [asks("storage.put", entry)])
    # No record comes by such a revision within a lifetime.
    with psycopg.connect(libpq_conninfo(probed.daemon.machine.urls[OWNER]), autocommit=True) as owner:
        owner.execute("update ext_storage_record set revision = %s where namespace = 'wide'", [2**53])
    entries = [entry | {"revision": 2**53 + more} for more in (0, 1, 2)]
    probes = [
        asks("storage.put", entries[1], refuses="conflict"),
        asks("storage.put", entries[0], answers=entries[1]),
        asks("storage.put", entries[0], refuses="conflict"),
        asks("storage.get", "wide", "k", answers=entries[1]),
        asks("storage.put", entries[1], answers=entries[2]),
    ]
    assert differences(probes, (await probed.ask(guest, probes)).answers) == ""


@pytest.mark.parametrize("size", [0, 1, MIB])
@by_guest
async def test_body__of_any_size__is_echoed(probed: Probed, guest: ProbeGuest, size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    assert (await probed.send(guest, "/echo", body)).completed.body == body


@by_guest
async def test_log_lines__are_those_of_the_execution(probed: Probed, guest: ProbeGuest) -> None:
    told = await probed.ask(guest, SCENARIOS["logging"](probed.around(guest)))
    record = await probed.record_of(told)
    said = [(line["level"], line["message"]) for line in record.log]
    assert said == [(level, text) for level in ("info", "warn", "error") for text in (f"{level} {UNICODE}", "")]
