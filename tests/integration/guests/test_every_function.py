"""Every function of every interface, called by components of both toolchains against both worlds, granted and not granted."""

from __future__ import annotations

import pytest

from registry.domain.capabilities import ALWAYS, PREFIX
from runnerd.capabilities.catalog import FUNCTIONS
from tests.fakes.dispatch_kit import OTHER_TENANT
from tests.fakes.probe_guests import GUESTS, ProbeGuest
from tests.fakes.probe_table import SCENARIOS, UNICODE, Probe, Surroundings, denial_of
from tests.integration.guests.conftest import Probed

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300), pytest.mark.xdist_group("probing guests")]
EVERYTHING = [probe for scenario in SCENARIOS.values() for probe in scenario(Surroundings())]


def of_world(guest: ProbeGuest, probes: list[Probe]) -> list[Probe]:
    return [probe for probe in probes if guest.imports(probe.function)]


ASKED = [(guest, name) for guest in GUESTS for name, scenario in SCENARIOS.items() if of_world(guest, scenario(Surroundings()))]


def short(value: object) -> str:
    return value.name.removeprefix("com.example.probe-") if isinstance(value, ProbeGuest) else str(value)


by_guest = pytest.mark.parametrize("guest", GUESTS, ids=short)


async def test_table__asks_every_function_of_the_catalog() -> None:
    assert {probe.function.qualified_name for probe in EVERYTHING} == {function.qualified_name for function in FUNCTIONS}


@pytest.mark.parametrize(("guest", "name"), ASKED, ids=short)
async def test_granted__answers_what_the_table_says(probed: Probed, guest: ProbeGuest, name: str) -> None:
    probes = of_world(guest, SCENARIOS[name](probed.around(guest)))
    told = await probed.ask(guest, probes, user=name != "nobody")
    wrong = [
        (probe.function.qualified_name, probe.arguments, answer)
        for probe, answer in zip(probes, told.answers, strict=True)
        if answer != probe.answer
    ]
    assert wrong == []


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
async def test_log_lines__are_those_of_the_execution(probed: Probed, guest: ProbeGuest) -> None:
    told = await probed.ask(guest, SCENARIOS["logging"](probed.around(guest)))
    record = await probed.record_of(told)
    said = [(line["level"], line["message"]) for line in record.log]
    assert said == [(level, text) for level in ("info", "warn", "error") for text in (f"{level} {UNICODE}", "")]
