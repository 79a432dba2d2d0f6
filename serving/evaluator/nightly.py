"""The nightly chain as the evaluator's rivals see it: N(d), switched at M + H, whatever was promoted.

`nightly-<M>` in the store holds the net as it was retrained at midnight M and the counters of M − 1. It stands
for what is served from version tick M + H on: when a nightly pipeline whose retrain takes H would have it. Which one
holds at a version tick is a function of that tick and of names in the store; the trainer has waited for the candidate
of M before it published anything beyond M + H, so the name is there when it is asked for.
"""

import re
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.config import ModelConfig
from infra.embedding.served.stores import Precision
from infra.paramstore.version import VersionId
from infra.ticks import Timeline
from serving.model import ServedModel, View, is_served

NAME = re.compile(r"nightly-(\d{1,19})")
NO_NIGHT = (-1, "")


class Snapshots(Protocol):
    """What is asked of `infra.paramstore.snapshots.SnapshotStore`."""

    def names(self) -> list[str]: ...

    def read(self, name: str, select: Any) -> Any: ...


class NightlyChain:
    """Loads the nightly net that holds at a version tick; keeps one."""

    def __init__(
        self, snapshots: Snapshots, model: ModelConfig, timeline: Timeline, *, delay_ticks: int, precision: Precision
    ) -> None:
        """`delay_ticks`: H. `precision`: of served rows; the replica's, so that arms differ in what they learned."""
        self._snapshots, self._model, self._timeline = snapshots, model, timeline
        self._delay, self._precision = delay_ticks, precision
        self.midnight = -1  # M of the net in hand
        self.switches: list[int] = []  # midnights in hand so far
        self._hour: int | None = None  # of the last look into the store
        self._view: View | None = None

    def view(self, version_tick: int) -> View | None:
        """The nightly net that holds at this version tick; None before the first."""
        # Cuts are whole hours, so which one holds changes only where an hour (shifted by H) begins.
        hour = (version_tick - self._delay) // self._timeline.ticks_per_hour
        if hour == self._hour:
            return self._view
        self._hour = hour
        midnight, name = self._holding(version_tick)
        if midnight != self.midnight:
            self._view = self._load(midnight, name)
            self.midnight = midnight
            self.switches.append(midnight)
        return self._view

    def _holding(self, version_tick: int) -> tuple[int, str]:
        known = ((int(m.group(1)), m.group()) for m in map(NAME.fullmatch, self._snapshots.names()) if m)
        return max((n for n in known if n[0] + self._delay <= version_tick), default=NO_NIGHT)

    def _load(self, midnight: int, name: str) -> View | None:
        if midnight < 0:
            return None
        tensors: Mapping[str, NDArray[Any]] = self._snapshots.read(name, is_served).tensors
        served = ServedModel(self._model, self._timeline, precision=self._precision, exclusive=True)
        served.open(tensors)
        return served.show(VersionId(-1, midnight), "")


def before_midnight(midnight: int) -> int:
    """M − 1: the tick as of which a nightly pipeline's counters are read."""
    return midnight - 1


def no_scores(rows: int) -> NDArray[np.float32]:
    """What an arm that has nothing to score with gives."""
    return np.full(rows, np.nan, np.float32)
