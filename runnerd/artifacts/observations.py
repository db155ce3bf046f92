"""What loading tells the daemon's metrics. `runnerd.telemetry.metrics.Metrics` is one; all values come from closed sets."""

from __future__ import annotations

from typing import Protocol

VERIFIED = "ok"


class LoaderMetrics(Protocol):
    """Told what happened, from the event loop's thread; must not block or raise."""

    def verification(self, result: str) -> None:
        """A signature, an archive or an artifact was checked: "ok", or a reason of the catalog."""
        ...

    def compiled(self, seconds: float) -> None:
        """An artifact was compiled, in this time: without waiting, and without fetching the component."""
        ...

    def artifact_loaded(self, source: str) -> None:
        """An artifact was made ready: from "memory", "cache", "shared" or "compiler"; "check" ahead of any call."""
        ...

    def shared_artifact(self, result: str) -> None:
        """The object store was asked for an artifact, or given one: see `runnerd.telemetry.metrics.SHARED_RESULTS`."""
        ...

    def preparing(self, *, waiting: int, fetching: int, compiling: int, oldest_start: float) -> None:
        """Preparations as of now: waiting for a compiler, fetched for one, in one, and when the oldest of these began (Unix time, or 0)."""
        ...
