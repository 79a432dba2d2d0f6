"""Ranking and probability metrics over nested examples, as sums that add up per hour and per day.

Ranking: the official MIND metrics (AUC, MRR, nDCG@5, nDCG@10), one value an impression, averaged over impressions.
MIND's MRR is the mean of 1/rank over the clicked items of an impression. An impression whose items are all clicked, or
none, has no order to get right and is left out of these means, as MIND's evaluation does; it still counts as rows.
Tied scores get the mean over all orders of the tied items (AUC: one half). MIND's script leaves ties to an unstable
sort; breaking them by shown position instead would give the position effect away to an arm that knows nothing.

Probability: log-loss, normalized entropy (log-loss over the entropy of the observed click rate; He et al. 2014,
"Practical Lessons from Predicting Clicks on Ads at Facebook", §3) and calibration (predicted over observed clicks).

Ranks use f, the score at the reference position; probabilities use the logit, with the shown position's bias.
An impression that an arm could not score (not finite) is left out of that arm and counted as `unscored`.
Shown items that are left out (`stream.outcomes`) are as if they had not been shown.
No sort is needed: only the ranks of clicked items matter, and an impression has one or two of them.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stream.outcomes import LEFT_OUT, POSITIVE

# Columns of a sums matrix (arms, COLUMNS) float64; counts stay exact below 2**53.
SUMS = (
    "impressions",
    "ranked",
    "rows",
    "clicks",
    "auc",
    "mrr",
    "ndcg5",
    "ndcg10",
    "predicted",
    "log_loss",
    "unscored",
)
COLUMNS = len(SUMS)
IMPRESSIONS, RANKED, ROWS, CLICKS, AUC, MRR, NDCG5, NDCG10, PREDICTED, LOG_LOSS, UNSCORED = range(COLUMNS)

# Pooled AUC comes from a histogram of f: 2**14 bins over [-16, 16) are 0.002 wide; within a bin scores count as tied.
BINS = 1 << 14
BIN_LOW = -16.0
BIN_PER_UNIT = BINS / 32.0


class Figures(NamedTuple):
    """The metrics of one arm over some scope; NaN where the scope does not define one."""

    auc_impression: float
    mrr: float
    ndcg5: float
    ndcg10: float
    auc: float
    log_loss: float
    ne: float
    calibration: float


@njit(cache=True, nogil=True)
def _rank_impression(
    f: NDArray[np.float32],
    labels: NDArray[np.uint8],
    lo: int,
    hi: int,
    clicked: int,
    passed: int,
    sums: NDArray[np.float64],
) -> None:
    """Add the ranking metrics of rows [lo, hi), of which `clicked` are clicked and `passed` not; neither is 0."""
    auc = 0.0
    mrr = 0.0
    dcg5 = 0.0
    dcg10 = 0.0
    for i in range(lo, hi):
        if labels[i] & POSITIVE == 0:
            continue
        above = 0  # items scored higher: the best rank of i is above + 1
        tied = 0  # items with this score, i included
        below = 0.0  # unclicked items scored lower, ties one half
        for j in range(lo, hi):
            if labels[j] & LEFT_OUT:
                continue
            if f[j] > f[i]:
                above += 1
            else:
                equal = f[j] == f[i]
                if equal:
                    tied += 1
                if labels[j] & POSITIVE == 0:
                    below += 0.5 if equal else 1.0
        auc += below
        # Mean over the ranks that i takes in all orders of its tie group.
        for rank in range(above + 1, above + tied + 1):
            mrr += 1.0 / rank / tied
            if rank <= 10:
                gain = 1.0 / math.log2(rank + 1.0) / tied
                dcg10 += gain
                if rank <= 5:
                    dcg5 += gain
    ideal5 = 0.0
    ideal10 = 0.0
    for rank in range(1, min(clicked, 10) + 1):
        gain = 1.0 / math.log2(rank + 1.0)
        ideal10 += gain
        if rank <= 5:
            ideal5 += gain
    sums[RANKED] += 1.0
    sums[AUC] += auc / (clicked * passed)
    sums[MRR] += mrr / clicked
    sums[NDCG5] += dcg5 / ideal5
    sums[NDCG10] += dcg10 / ideal10


@njit(cache=True, nogil=True)
def add_scores(
    offsets: NDArray[np.int64],
    labels: NDArray[np.uint8],
    f: NDArray[np.float32],
    logit: NDArray[np.float32],
    sums: NDArray[np.float64],
    histogram: NDArray[np.int64],
) -> None:
    """Add impressions to the sums and histograms of every arm.

    offsets (n + 1,) cut the rows into impressions; labels (rows,) are outcomes, and what is left out counts
    nowhere; f and logit (arms, rows);
    sums (arms, COLUMNS) and histogram (arms, 2, BINS: unclicked, clicked) are added to in place.
    """
    for arm in range(f.shape[0]):
        for i in range(offsets.shape[0] - 1):
            lo, hi = offsets[i], offsets[i + 1]
            clicked = 0
            rows = 0
            finite = True
            for row in range(lo, hi):
                clicked += labels[row] & POSITIVE
                rows += 0 if labels[row] & LEFT_OUT else 1
                if not (math.isfinite(f[arm, row]) and math.isfinite(logit[arm, row])):
                    finite = False
            if not finite:
                sums[arm, UNSCORED] += 1.0
                continue
            sums[arm, IMPRESSIONS] += 1.0
            sums[arm, ROWS] += rows
            sums[arm, CLICKS] += clicked
            for row in range(lo, hi):
                if labels[row] & LEFT_OUT:
                    continue
                y = int(labels[row] & POSITIVE)
                z = np.float64(logit[arm, row])  # float() would stay 32 bits wide in numba
                e = math.exp(-abs(z))
                # log(1 + e^z) − y·z and 1 / (1 + e^−z), neither overflowing.
                sums[arm, LOG_LOSS] += max(z, 0.0) - y * z + math.log1p(e)
                sums[arm, PREDICTED] += 1.0 / (1.0 + e) if z >= 0.0 else e / (1.0 + e)
                at = math.floor((np.float64(f[arm, row]) - BIN_LOW) * BIN_PER_UNIT)
                histogram[arm, y, int(min(max(at, 0), BINS - 1))] += 1
            if 0 < clicked < rows:
                _rank_impression(f[arm], labels, lo, hi, clicked, rows - clicked, sums[arm])


def pooled_auc(histogram: NDArray[np.int64]) -> float:
    """AUC over all pairs of a clicked and an unclicked row, from one arm's histogram (2, BINS); NaN without pairs."""
    unclicked = histogram[0].astype(np.float64)
    clicked = histogram[1].astype(np.float64)
    pairs = unclicked.sum() * clicked.sum()
    if pairs == 0.0:
        return math.nan
    below = np.cumsum(unclicked) - 0.5 * unclicked
    return float((clicked * below).sum() / pairs)  # not BLAS: its threads cost more than the sum


def entropy(rate: float) -> float:
    """Entropy of a click rate, nats."""
    if not 0.0 < rate < 1.0:
        return 0.0
    return -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate)


def figures(sums: NDArray[np.float64], auc: float) -> Figures:
    """Means from one arm's sums (COLUMNS,) and its pooled AUC."""

    def ratio(a: float, b: float) -> float:
        return a / b if b > 0.0 else math.nan

    ranked, rows, clicks = float(sums[RANKED]), float(sums[ROWS]), float(sums[CLICKS])
    log_loss = ratio(float(sums[LOG_LOSS]), rows)
    return Figures(
        auc_impression=ratio(float(sums[AUC]), ranked),
        mrr=ratio(float(sums[MRR]), ranked),
        ndcg5=ratio(float(sums[NDCG5]), ranked),
        ndcg10=ratio(float(sums[NDCG10]), ranked),
        auc=auc,
        log_loss=log_loss,
        ne=ratio(log_loss, entropy(ratio(clicks, rows))),
        calibration=ratio(float(sums[PREDICTED]), clicks),
    )
