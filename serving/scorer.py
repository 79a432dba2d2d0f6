"""Scores impressions with a view: the trainer's features, the served rows, the `score` graph.

The features come from `stream.features`, the same functions that the trainer calls: pinned to version live(s), what is
computed here for an impression shown in tick s is bit-equal to what the trainer computes. Position is no part of f: a
request is ranked by f at the reference position; log-loss and calibration add b[position as shown].
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.config import ModelConfig
from infra.ticks import Timeline
from serving.model import View
from stream.features.batch import Batch, Impressions, build_batch, request
from stream.features.blocks import gather_blocks

REFERENCE_POSITION = 0


class Scores(NamedTuple):
    """R shown items, in the order of the impressions: f, the position term as shown, and where each impression ends."""

    f: NDArray[np.float32]  # (R,) logit without position: what is ranked by
    position_bias: NDArray[np.float32]  # (R,) b[position as shown]
    row_offsets: NDArray[np.int64]  # (I + 1,)

    @property
    def logit(self) -> NDArray[np.float32]:
        """f + b[position]: what is compared with clicks."""
        return self.f + self.position_bias


class Ranking(NamedTuple):
    """Candidates in descending order of f; equal scores keep the request's order."""

    order: NDArray[np.int64]  # (n,) indices into the request's items
    f: NDArray[np.float32]  # (n,) aligned with the request's items
    probability: NDArray[np.float32]  # (n,) of a click at the reference position, aligned with the request's items
    read_tick: int


class Scorer:
    """Stateless but for the configuration; safe in several threads."""

    def __init__(self, model: ModelConfig, timeline: Timeline) -> None:
        self._model, self._timeline = model, timeline

    def features(self, view: View, examples: Impressions, read_tick: int) -> Batch:
        """The batch as the net sees it, of impressions shown in one tick. Raises ValueError if `view` is too new."""
        return build_batch(examples, view.counters, view.catalogue, read_tick, self._model)

    def score(self, view: View, examples: Impressions, *, read_tick: int) -> Scores:
        """f of every shown item of impressions that were shown in one tick, read at `read_tick` = live(that tick)."""
        batch = self.features(view, examples, read_tick)
        blocks = gather_blocks(batch, view.lookup)
        return Scores(view.net.score(blocks), blocks.position_bias, batch.row_offsets)

    def rank(
        self,
        view: View,
        *,
        user: int,
        items: NDArray[np.int64],
        history: NDArray[np.int64],
        time_ms: int,
        read_tick: int | None = None,
    ) -> Ranking:
        """Order candidate keys for a user at an event time; read at live(s), or at the view's tick if that is newer."""
        if read_tick is None:
            read_tick = view.read_tick(self._timeline.tick_of(time_ms), self._timeline)
        impression = request(user=user, time_ms=time_ms, history=history, items=items)
        f = self.score(view, impression, read_tick=read_tick).f
        bias = view.tables["position"].gather(np.array([REFERENCE_POSITION], dtype=np.int64))[0, 0]
        probability = 1.0 / (1.0 + np.exp(-(f.astype(np.float64) + float(bias))))
        order = np.argsort(-f, kind="stable").astype(np.int64)
        return Ranking(order, f, probability.astype(np.float32), read_tick)
