"""What the daemon says about itself."""

from __future__ import annotations

from dataclasses import dataclass

from registry.domain.limits import ExecutionLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class HardeningState:
    """One step of process hardening, over all workers."""

    name: str
    applied: bool
    """True where it holds in every worker alive."""
    mandatory: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """A description of this daemon, as of now."""

    version: str
    engine_version: str
    engine_fingerprint: str
    workers: int
    slots: int
    workers_max: int
    ceiling: ExecutionLimits
    hardening: tuple[HardeningState, ...]
    trust_domain: str
    trust_domain_production: bool
    cell: int
    """Which cell answers; the figures are its own."""
    cells: int
    generation: int
    """Of the workers."""
    circuits_open: int
