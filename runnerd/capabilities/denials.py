"""Says why a capability was refused and what the smallest change is that would allow it. For the execution log, never for the guest."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from registry.domain.capabilities import ALWAYS, PREFIX


def explain_denial(capability: str, *, declared: AbstractSet[str], granted: AbstractSet[str]) -> Mapping[str, str]:
    """Explain why `capability` (without prefix) is not in force.

    Returns:
        `capability`, `why` ("not_declared", "not_granted", "not_allowed_by_operator") and `change`, a sentence.
    """
    name = PREFIX + capability
    if capability in ALWAYS:
        return _explanation(name, "not_available", "Report it to the operator: every install has this capability.")
    if capability not in declared:
        change = f'The author adds "{name}" to "capabilities" in manifest.json and publishes a new version; the tenant then grants it.'
        return _explanation(name, "not_declared", change)
    if capability not in granted:
        return _explanation(name, "not_granted", f'An administrator of the tenant grants "{name}" to this install.')
    return _explanation(name, "not_allowed_by_operator", f'The operator of this runner allows "{name}".')


def explain_absence(capability: str) -> Mapping[str, str]:
    """Explain why a capability that is in force was refused all the same: this runner has nothing behind it."""
    return _explanation(PREFIX + capability, "not_available", "Nothing the tenant can change: this runner does not offer the capability.")


def explain_event_depth(most: int) -> Mapping[str, str]:
    """Explain why an event was refused that follows from others, `most` deep at most."""
    change = f"Events lead to events at most {most} deep: the author breaks the loop. Whoever delivers an event names it to the runner."
    return _explanation(PREFIX + "events.emit", "event_depth", change)


def explain_storage_refusal(case: str, detail: str) -> Mapping[str, str]:
    """Explain why storage refused what its capability allows: a limit that is used up, an argument that breaks a rule, no install."""
    name = PREFIX + "storage.kv"
    changes = {
        "quota-exceeded": "The extension deletes what it does not need or lets it expire, or the install is given larger limits",
        "invalid": "The author keeps names, sizes and times within what the interface documents",
    }
    change = changes.get(case, "Nothing: what it stored went with the install")
    return _explanation(name, case.replace("-", "_"), f"{change}: {detail}.")


def _explanation(capability: str, why: str, change: str) -> Mapping[str, str]:
    return {"capability": capability, "why": why, "change": change}
