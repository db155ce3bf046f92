"""Whether an install may send a request somewhere: what is declared ∩ what the tenant left ∩ what the operator allows, by name.

The attack it stops (T10, T34): a name that is on nobody's list must not even be looked up, since a look-up is a message to whoever serves
the name. Addresses are judged later, where they are known, in the egress process. `count` mode relaxes the list of hosts, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from registry.domain.capabilities import PREFIX
from registry.domain.egress import DEFAULT_PORTS, DEFAULT_SCHEMES, InstallEgress, any_matches, host_matches
from registry.domain.ids import VersionId
from runnerd.capabilities.urls import Target

CAPABILITY = "http.fetch"
ANY_NAME = "*"
"""In the operator's list: every name. Addresses have to be listed themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressCeiling:
    """What the operator allows any install, by name."""

    hosts: tuple[str, ...] = (ANY_NAME,)
    ports: tuple[int, ...] = DEFAULT_PORTS
    schemes: tuple[str, ...] = DEFAULT_SCHEMES

    def admits(self, target: Target) -> bool:
        """Tell whether a request may go there as far as the operator is concerned."""
        if target.scheme not in self.schemes or target.port not in self.ports:
            return False
        named = any_matches((host for host in self.hosts if host != ANY_NAME), target.host)
        return named or (ANY_NAME in self.hosts and not target.is_address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a request may go out."""

    allowed: bool
    result: str = "ok"
    """For the metric."""
    denial: Mapping[str, str] | None = None
    """Why not, and what would change it; in `count` mode also where it goes out all the same."""


ALLOWED = Decision(allowed=True)


def decide(target: Target, egress: InstallEgress, ceiling: EgressCeiling, now: datetime) -> Decision:
    """Judge a request by name, scheme and port.

    Args:
        target: where it would go.
        egress: of the install.
        ceiling: the operator's.
        now: an aware time; `count` mode ends.
    """
    on_the_list = ALLOWED
    declared = [rule for rule in egress.rules if host_matches(rule.host, target.host)]
    if not declared:
        on_the_list = _off_the_list("host_not_declared", _declare(target))
    elif egress.hosts is not None and not any_matches(egress.hosts, target.host):
        change = f'An administrator of the tenant adds "{target.host}" to the hosts that this install may reach.'
        on_the_list = _off_the_list("host_not_granted", change)
    elif not any(rule.admits(target.scheme, target.port) for rule in declared):
        # Not a matter of the list of hosts: enforced in `count` mode, too.
        return _refused("not_on_list", "scheme_or_port_not_declared", _declare(target))
    if not ceiling.admits(target):
        # Said first: no change of manifest or list would help.
        change = f"The operator of this runner allows {target.scheme} to {target.authority} in its ceiling for egress."
        return _refused("ceiling", "not_allowed_by_operator", change)
    # SECURITY: what no rule speaks of has the scheme and port that rules have by default.
    plain = target.scheme in DEFAULT_SCHEMES and target.port in DEFAULT_PORTS
    if not on_the_list.allowed and egress.counts_at(now) and plain:
        return Decision(allowed=True, result="counted", denial=on_the_list.denial)
    return on_the_list


def explain(why: str, change: str) -> Mapping[str, str]:
    """Return an explanation for the execution record."""
    return {"capability": PREFIX + CAPABILITY, "why": why, "change": change}


@lru_cache(maxsize=4_096)
def generation_of(egress: InstallEgress, version_id: VersionId, ceiling: EgressCeiling) -> str:
    """Name a state of the policy: requests of different states share no connection."""
    return hashlib.sha256(repr((egress, version_id, ceiling)).encode()).hexdigest()[:32]


def _declare(target: Target) -> str:
    entry = f'{{"host": "{target.host}", "ports": [{target.port}], "schemes": ["{target.scheme}"]}}'
    return f'The author adds {entry} to "egress" in manifest.json and publishes a new version; the tenant then installs it.'


def _off_the_list(why: str, change: str) -> Decision:
    return _refused("not_on_list", why, change)


def _refused(result: str, why: str, change: str) -> Decision:
    return Decision(allowed=False, result=result, denial=explain(why, change))
