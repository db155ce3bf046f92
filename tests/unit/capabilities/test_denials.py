from __future__ import annotations

import pytest

from registry.domain.capabilities import ALWAYS, KNOWN
from runnerd.capabilities.denials import explain_absence, explain_denial

STORAGE = frozenset({"storage.kv"})
NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("declared", "granted", "why", "change"),
    [
        (NONE, NONE, "not_declared", "manifest.json"),
        (NONE, STORAGE, "not_declared", "manifest.json"),
        (STORAGE, NONE, "not_granted", "administrator"),
        (STORAGE, STORAGE, "not_allowed_by_operator", "operator"),
    ],
)
def test_the_smallest_change_is_named(declared: frozenset[str], granted: frozenset[str], why: str, change: str) -> None:
    explanation = explain_denial("storage.kv", declared=declared, granted=granted)
    assert (explanation["capability"], explanation["why"]) == ("cap:storage.kv", why)
    assert change in explanation["change"]


@pytest.mark.parametrize("capability", sorted(KNOWN))
def test_every_explanation_is_three_short_strings(capability: str) -> None:
    for explanation in (explain_denial(capability, declared=NONE, granted=NONE), explain_absence(capability)):
        assert set(explanation) == {"capability", "why", "change"}
        assert all(0 < len(text) < 200 for text in explanation.values())


@pytest.mark.parametrize("capability", sorted(ALWAYS))
def test_nobody_is_asked_to_grant_what_everybody_has(capability: str) -> None:
    assert explain_denial(capability, declared=NONE, granted=NONE)["why"] == "not_available"
