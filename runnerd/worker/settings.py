"""What the daemon tells a new worker, as it travels over the zygote's control channel. Standard library only; nothing in it is secret."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from runnerd.worker.hardening import NOBODY

MIB = 1024 * 1024
MAX_SLOTS = 64
EXIT_HARDENING = 70
"""Exit status of a worker in which a mandatory step of hardening failed; its standard error says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """One worker."""

    slots: int = 16
    """Calls that run at once, each on a thread of its own."""
    cpu: int | None = None
    """Processor to run on; None leaves it to the kernel (T38)."""
    fuel: bool = True
    """As in `EngineProfile`."""
    bridge: bool = True
    """As in `EngineProfile`: part of the engine's fingerprint, although a worker runs what it is given."""
    memory_bytes: int = 256 * MIB
    """Linear memory that one call has usually; makes RLIMIT_DATA together with `slots`."""
    body_bytes_in_flight: int = 16 * MIB
    """Request bodies converted at once; on the ordinary call path each byte costs some 70 while its call runs, over the bridge some 8."""
    user: int | None = NOBODY
    """User and group to become where the daemon is root; None keeps them."""
    require_hardening: bool = True
    """End where a mandatory step of hardening fails. False only in development."""

    def __post_init__(self) -> None:
        """Refuse what makes no worker.

        Raises:
            ValueError: a figure out of range.
        """
        if not 1 <= self.slots <= MAX_SLOTS:
            message = f"a worker has 1 to {MAX_SLOTS} slots, not {self.slots}"
            raise ValueError(message)
        if self.memory_bytes < MIB or self.body_bytes_in_flight < MIB:
            message = "a worker needs at least 1 MiB of each kind of memory"
            raise ValueError(message)

    @property
    def data_bytes(self) -> int:
        """RLIMIT_DATA above what the process starts with (N12).

        Twice the slots' memory, because the pool keeps dropped slots accessible until they are used again; a hundred times the bodies;
        and stacks, tables and Python.
        """
        return 2 * (self.slots + 1) * self.memory_bytes + 100 * self.body_bytes_in_flight + 512 * MIB

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> WorkerConfig:
        """Read what `to_json` made.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(value, dict) or value.keys() - {field.name for field in fields(cls)}:
            message = f"not a worker's configuration: {json.dumps(value)[:200]}"
            raise ValueError(message)
        return cls(**value)
