"""Negative sampling: a hash of impression and item decides, and the logit is corrected for it.

Every clicked row is kept, and a share `rate` of the others. Which ones is a function of (seed, impression, item)
alone, so online, retrain and a rerun keep the same rows in any order. Keeping negatives at rate r divides the odds by
r: what is fitted to the sample has log-odds f - log r where the whole has f (He et al. 2014, section 6.3; Monolith,
arXiv 2209.07663). So training adds `offset` = -log r to the logit, and serving uses f as it is. The joiner never
samples: metrics per impression need every row.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def draw(impression: int, item: int, seed: int) -> int:
    """Uniform in [0, 2^53) by (seed, impression, item): two rounds of the splitmix64 finalizer."""
    h = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(impression)
    for word in (np.uint64(item), np.uint64(0xD1B54A32D192ED03)):
        h ^= h >> np.uint64(30)
        h *= np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> np.uint64(27)
        h *= np.uint64(0x94D049BB133111EB)
        h ^= h >> np.uint64(31)
        h += word
    return np.int64((h ^ (h >> np.uint64(32))) >> np.uint64(11))  # type: ignore[return-value]


@njit(cache=True, nogil=True)
def _keep(
    impressions: NDArray[np.int64],
    items: NDArray[np.int64],
    clicked: NDArray[np.bool_],
    seed: int,
    below: int,
) -> NDArray[np.bool_]:
    out = np.empty(len(items), np.bool_)
    for i in range(len(items)):
        out[i] = clicked[i] or draw(impressions[i], items[i], seed) < below
    return out


@dataclass(frozen=True, slots=True)
class Sampling:
    """Keeps negatives at `rate` in (0, 1]."""

    rate: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"the rate of kept negatives is {self.rate}; it lies in (0, 1]")

    @property
    def below(self) -> int:
        """A draw under this keeps the row."""
        return round(self.rate * 2.0**53)

    @property
    def offset(self) -> float:
        """-log rate: what training adds to the logit, so that f means the whole log and not the sample."""
        return -math.log(self.rate) if self.rate < 1.0 else 0.0

    def keep(
        self, impressions: NDArray[np.int64], items: NDArray[np.int64], clicked: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Which rows (n,) to learn from: all clicked ones, and the others by their hash."""
        out: NDArray[np.bool_] = _keep(impressions, items, clicked, self.seed, self.below)
        return out


KEEP_ALL = Sampling()
