"""The engine's configuration as constants, and the fingerprint under which compiled artifacts are valid.

Standard library only: the daemon reads it without loading wasmtime. `engine.py` turns it into an Engine; compiler and workers build the
same one, and an artifact of any other fingerprint is never mapped.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

MIB = 1024 * 1024
BRIDGE_VERSION = "2"
"""Of `bridge.wat`, `compose.py` and the images of `bridge.py`, together: another version is another fingerprint."""
BRIDGE_MEMORIES = 2
"""Linear memories that the bridge adds to a component: one around the handler, one around the host calls."""
BRIDGE_CORE_INSTANCES = 5
"""Core instances that it adds: two arenas, `run`, the host calls, and what measures the author's memory."""
TICK_SECONDS = 0.01
"""Length of one epoch."""
MAX_TICKS_AHEAD = 32
"""A guest meets its host at least this often, so that `Ticker.hurry` can cut it at once."""

# Fixed parts of the configuration. Each is either a limit of DESIGN §7 or closes what is not needed (RUNTIME §4.10).
MAX_WASM_STACK_BYTES = 1 * MIB
MAX_MEMORY_BYTES = 1024 * MIB
"""Of one linear memory in the pool: the operator's ceiling; each call's own cap comes from its store (N40)."""
MAX_MEMORIES = 4
"""Linear memories of one component, all its instances together (N14)."""
MAX_TABLES = 16
MAX_TABLE_ELEMENTS = 50_000
"""StarlingMonkey needs some 20,000."""
MAX_CORE_INSTANCES = 100
"""Core instances of one component. componentize-py makes some 30, for its shared libraries."""
MEMORY_KEEP_RESIDENT_BYTES = 1 * MIB
"""Cleared by memset instead of being given back, when an instance ends: a fifth more calls per second (RUNTIME §3)."""
TABLE_KEEP_RESIDENT_BYTES = 512 * 1024
"""The same for tables: StarlingMonkey's takes 160 KiB, and a call a twentieth less."""
FEATURES_OFF = (
    "threads",
    "shared_memory",
    "memory64",
    "gc",
    "function_references",
    "exceptions",
    "relaxed_simd",
    "tail_call",
    "wide_arithmetic",
    "custom_page_sizes",
    "stack_switching",
    "component_model_async",
    "concurrency_support",
    "component_model_map",
    "component_model_implements",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """What an operator may choose about the engine."""

    fuel: bool = True
    """Count fuel. Deterministic, but up to twice the CPU on code that calls a lot (decision 4)."""
    bridge: bool = True
    """Compose the bridge around components. Off, all run on the ordinary call path: for an advisory in what the bridge uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSizes:
    """Totals of the pooling allocator of one worker."""

    memories: int
    tables: int
    core_instances: int
    component_instances: int

    @classmethod
    def for_slots(cls, slots: int) -> PoolSizes:
        """Make room for `slots` calls of the largest component, and one more that is being dropped."""
        calls = slots + 1
        return cls(
            memories=calls * (MAX_MEMORIES + BRIDGE_MEMORIES),
            tables=calls * MAX_TABLES,
            core_instances=calls * (MAX_CORE_INSTANCES + BRIDGE_CORE_INSTANCES),
            component_instances=calls,
        )


DEFAULT_PROFILE = EngineProfile()


@cache
def engine_version() -> str:
    """Return the version of the installed wasmtime package."""
    return metadata.version("wasmtime")


@cache
def cpu_features() -> str:
    """Return a digest of the processor's features: native code made with more of them must not run here."""
    names: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"flags", "Features"}:
                names.update(value.split())
    except OSError:
        # Not Linux, or no /proc: the architecture alone.
        pass
    text = " ".join([platform.machine(), *sorted(names)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def engine_fingerprint(profile: EngineProfile = DEFAULT_PROFILE) -> str:
    """Return the identity of what compiled code depends on: 64 hexadecimal digits.

    Two processes with the same fingerprint can run each other's artifacts. It holds the engine's version, everything of the configuration,
    the processor's features and the bridge's version.
    """
    parts = {
        "wasmtime": engine_version(),
        "bridge": BRIDGE_VERSION,
        "cpu": cpu_features(),
        "profile": asdict(profile),
        "stack": MAX_WASM_STACK_BYTES,
        "memory": MAX_MEMORY_BYTES,
        "memories": [MAX_MEMORIES, BRIDGE_MEMORIES],
        "tables": [MAX_TABLES, MAX_TABLE_ELEMENTS],
        "instances": [MAX_CORE_INSTANCES, BRIDGE_CORE_INSTANCES],
        "off": FEATURES_OFF,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
