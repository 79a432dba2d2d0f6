"""Scores the same impressions with every arm, from one batch.

    online      the served rows, net, position terms and counters, as of version live(s)
    nightly     N(d) with the same live counters: what learning online has to beat
    frozen      N(d) with the counters of M − 1, read as of M − 1: what a nightly batch pipeline has
    popularity  the smoothed recent click rate that is among the features: log-odds, no net
    oracle      the true click probability, where the log was generated

All trained arms share keys and indices of one batch; `frozen` shares `nightly`'s rows and differs in `ctx` alone.
Each gives f, which ranks, and the logit with its own position term, which log-loss and calibration read.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.evaluator.frozen import FrozenContext
from serving.evaluator.nightly import NightlyChain, no_scores
from serving.evaluator.truth import Truth
from serving.model import View
from serving.scorer import Scorer
from stream.examples import ExampleColumns
from stream.features.batch import Batch
from stream.features.blocks import gather_blocks
from stream.features.context import FEATURE_NAMES, PRIOR_CTR

TRAINED = ("online", "nightly", "frozen")
POPULARITY_FEATURE = FEATURE_NAMES.index("item_ctr_slow")
# The feature is the log-odds against the prior; with the prior's it is a click probability.
PRIOR_LOG_ODDS = np.float32(np.log(PRIOR_CTR / (1.0 - PRIOR_CTR)))


class ArmScores(NamedTuple):
    """Of every arm, aligned with the shown items of the examples."""

    f: NDArray[np.float32]  # (arms, rows)
    logit: NDArray[np.float32]  # (arms, rows)


class Arms:
    """The arms of a run."""

    def __init__(self, scorer: Scorer, nightly: NightlyChain, truth: Truth | None) -> None:
        self._scorer, self._nightly, self._truth = scorer, nightly, truth
        self._frozen = FrozenContext()
        self.names = (*TRAINED, "popularity", *(("oracle",) if truth is not None else ()))

    def score(self, view: View, examples: ExampleColumns, live: int) -> ArmScores:
        """Scores of impressions shown in one tick, by versions through `live` = live(that tick)."""
        batch = self._scorer.features(view, examples, live)
        rows = batch.n_rows
        f = np.empty((len(self.names), rows), np.float32)
        logit = np.empty_like(f)
        blocks = gather_blocks(batch, view.lookup)
        f[0] = view.net.score(blocks)
        np.add(f[0], blocks.position_bias, out=logit[0])
        self._score_nightly(view, batch, live, f, logit)
        popular = batch.ctx[batch.ctx_of_row, POPULARITY_FEATURE] + PRIOR_LOG_ODDS
        f[3] = logit[3] = popular
        if self._truth is not None:
            self._truth.logits(examples.impression, examples.items.offsets, f[4], logit[4])
        return ArmScores(f, logit)

    def _score_nightly(
        self, view: View, batch: Batch, live: int, f: NDArray[np.float32], logit: NDArray[np.float32]
    ) -> None:
        night = self._nightly.view(live)
        if night is None:
            f[1:3] = logit[1:3] = no_scores(batch.n_rows)
            return
        blocks = gather_blocks(batch, night.lookup)
        f[1] = night.net.score(blocks)
        items = batch.keys["item"][batch.item]
        ctx = self._frozen.of(items, night, self._nightly.midnight, view.catalogue)
        f[2] = night.net.score(replace(blocks, ctx=ctx))
        np.add(f[1:3], blocks.position_bias, out=logit[1:3])
