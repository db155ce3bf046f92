"""What is being prepared now, how far it is and for how long: for operators (metrics, log) and for who is told COMPILING."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum

from registry.domain.digests import ContentHash
from registry.domain.records import LoadableBundle
from runnerd.artifacts.observations import LoaderMetrics

_LOG = logging.getLogger(__name__)


class Stage(StrEnum):
    """How far a preparation is."""

    LOOKING = "looking"
    """For an artifact that exists: on disk, or another daemon's."""
    WAITING = "waiting"
    """For a compiler."""
    FETCHING = "fetching"
    """Its turn has come, and nobody else's: the archive is brought for the compiler."""
    COMPILING = "compiling"


class Preparation:
    """One bundle on its way to an artifact."""

    def __init__(self, bundle: LoadableBundle, changed: Callable[[], None]) -> None:
        self.content_hash = bundle.content_hash
        self.began = self.stage_began = time.monotonic()
        self.stage = Stage.LOOKING
        self._publisher = bundle.publisher
        self._ahead: Callable[[], int] = int
        self._changed = changed

    def waiting(self, ahead: Callable[[], int]) -> None:
        """It waits for a compiler; `ahead` tells how many have their turn before it."""
        self._ahead = ahead
        self._enter(Stage.WAITING)

    def fetching(self) -> None:
        """Its turn has come: the archive is being fetched and unpacked."""
        self._ahead = int
        self._enter(Stage.FETCHING)

    def compiling(self) -> None:
        """A compiler has begun, on what was fetched."""
        turn = self.stage_began
        self._enter(Stage.COMPILING)
        spent = {"waited_seconds": round(turn - self.began, 3), "fetch_seconds": round(self.stage_began - turn, 3)}
        _LOG.info("compilation started", extra=self._facts() | spent)

    def ended(self, *, well: bool) -> None:
        """Nothing is left to be done; said in the log where a compiler had begun."""
        if self.stage is Stage.COMPILING:
            seconds = round(time.monotonic() - self.stage_began, 3)
            _LOG.info("compilation ended", extra=self._facts() | {"seconds": seconds, "compiled": well})

    def describe(self) -> dict[str, str]:
        """Say how far it is, for who waits: stage, seconds since it began, and compilations that come first."""
        facts = {"stage": self.stage.value, "elapsed_seconds": str(int(time.monotonic() - self.began))}
        if self.stage is Stage.WAITING:
            facts["ahead"] = str(self._ahead())
        return facts

    def _enter(self, stage: Stage) -> None:
        self.stage, self.stage_began = stage, time.monotonic()
        self._changed()

    def _facts(self) -> dict[str, object]:
        return {"content_hash": self.content_hash, "publisher": self._publisher}


class ProgressBoard:
    """All preparations of one daemon. Belongs to one event loop.

    Args:
        metrics: told whenever one enters another stage.
    """

    def __init__(self, metrics: LoaderMetrics) -> None:
        self._metrics = metrics
        self._running: dict[ContentHash, Preparation] = {}

    @contextlib.contextmanager
    def preparing(self, bundle: LoadableBundle) -> Iterator[Preparation]:
        """Show a preparation for as long as the block runs. There is one for a content hash at a time."""
        preparation = Preparation(bundle, self._changed)
        self._running[bundle.content_hash] = preparation
        well = False
        try:
            yield preparation
            well = True
        finally:
            del self._running[bundle.content_hash]
            preparation.ended(well=well)
            self._changed()

    def describe(self, content_hash: ContentHash) -> dict[str, str]:
        """Say how far the preparation of `content_hash` is; nothing where there is none."""
        preparation = self._running.get(content_hash)
        return {} if preparation is None else preparation.describe()

    def _changed(self) -> None:
        stages = Counter(one.stage for one in self._running.values())
        oldest = min((one.stage_began for one in self._running.values() if one.stage is Stage.COMPILING), default=None)
        self._metrics.preparing(
            waiting=stages[Stage.WAITING],
            fetching=stages[Stage.FETCHING],
            compiling=stages[Stage.COMPILING],
            oldest_start=0.0 if oldest is None else time.time() - (time.monotonic() - oldest),
        )
