"""Limits of an execution: operator maximum ≥ tenant grant ≥ request wish, met in one `clamp`."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 1024 * 1024

MAX_SIGNATURE_BYTES = 64 * 1024
"""Of a bundle's signature, the JSON that the signing tool wrote: about 10 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLimits:
    """What one install may store (DESIGN §7). Bytes are those of values and metadata; keys are bounded by their count and length."""

    namespaces: int
    keys_per_namespace: int
    value_bytes: int
    """One value."""
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionLimits:
    """What one execution may use at most. Every field is a positive number in the unit its name or comment says.

    Those of the storage are what its install may hold once the execution has written.
    """

    wall_time_ms: int = 5_000
    cpu_time_ms: int = 1_000
    fuel: int = 5_000_000_000
    memory_bytes: int = 256 * MIB
    """All linear memories of the component together."""
    request_bytes: int = 10 * MIB
    """Body of the request."""
    response_bytes: int = 10 * MIB
    """Body of the response. Where an extension runs without the bridge, 2 MiB hold whatever stands here."""
    host_calls: int = 1_000
    log_lines: int = 256
    log_bytes: int = 64 * 1024
    storage_namespaces: int = 32
    storage_keys: int = 5_120
    """In each namespace."""
    storage_value_bytes: int = 64 * 1024
    storage_bytes: int = 256 * MIB

    @property
    def storage(self) -> StorageLimits:
        """Those of the storage."""
        return StorageLimits(
            namespaces=self.storage_namespaces,
            keys_per_namespace=self.storage_keys,
            value_bytes=self.storage_value_bytes,
            total_bytes=self.storage_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitWishes:
    """Limits that a grant or a request asks for; None asks for nothing."""

    wall_time_ms: int | None = None
    cpu_time_ms: int | None = None
    fuel: int | None = None
    memory_bytes: int | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    host_calls: int | None = None
    log_lines: int | None = None
    log_bytes: int | None = None
    storage_namespaces: int | None = None
    storage_keys: int | None = None
    storage_value_bytes: int | None = None
    storage_bytes: int | None = None


OPERATOR_DEFAULTS = ExecutionLimits()
"""What applies where nobody asks for anything (DESIGN §7)."""

OPERATOR_CEILING = ExecutionLimits(
    wall_time_ms=30_000,
    cpu_time_ms=10_000,
    fuel=100_000_000_000,
    memory_bytes=1024 * MIB,
    request_bytes=32 * MIB,
    response_bytes=32 * MIB,
    host_calls=1_000,
    log_lines=256,
    log_bytes=64 * 1024,
    storage_namespaces=128,
    storage_keys=20_480,
    storage_value_bytes=64 * 1024,
    storage_bytes=1024 * MIB,
)
"""What nobody can exceed (DESIGN §7)."""


_NAMES = tuple(field.name for field in fields(ExecutionLimits))


def clamp(*, defaults: ExecutionLimits, ceiling: ExecutionLimits, grant: LimitWishes, wishes: LimitWishes) -> ExecutionLimits:
    """Combine the three layers.

    A grant may raise a default up to the ceiling or lower it; a request's wish may only lower what then holds.

    Guarantee: each field of the result is at most the ceiling's, and at most the wish where one is given.
    """
    values: dict[str, int] = {}
    for name in _NAMES:
        granted: int | None = getattr(grant, name)
        wished: int | None = getattr(wishes, name)
        allowed = min(getattr(ceiling, name), getattr(defaults, name) if granted is None else granted)
        values[name] = allowed if wished is None else min(allowed, wished)
    return ExecutionLimits(**values)
