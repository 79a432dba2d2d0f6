"""The same ids for every contender: functions of (keys, seed), which each process makes for itself before its timer.

Key number r is mix64(r): distinct by construction, in no order that helps anyone. A contender inserts keys 0, 1, … in
this order, so r is also the row number that a rival with known rows reads. Zipf ranks are scattered over the rows: hot
keys are no neighbours in memory.
"""

import math
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

ZIPF = 1.05
DISTRIBUTIONS = ("uniform", "zipf")
LR = 0.05  # of every update rule
FRESH = 1 << 40  # keys numbered from here on are in no table


def keys_at(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys (n,) of these numbers: SplitMix64's finalizer, a bijection."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


class Inputs:
    """Ids over `keys` keys."""

    def __init__(self, keys: int, seed: int = 1) -> None:
        self.keys, self._seed = keys, seed
        self._stride = next(p for p in (7_368_787, 7_368_791, 7_368_793, 1) if math.gcd(p, keys) == 1)

    @cached_property
    def _cumulated(self) -> NDArray[np.float64]:
        weights = np.arange(1, self.keys + 1, dtype=np.float64)
        np.power(weights, -ZIPF, out=weights)
        np.cumsum(weights, out=weights)
        weights /= weights[-1]
        return weights

    def rows(self, distribution: str, part: int, ids: int) -> NDArray[np.int64]:
        """Row numbers (ids,) that a measurement asks for; `part` tells measurements apart."""
        rng = np.random.default_rng([self._seed, DISTRIBUTIONS.index(distribution), part])
        if distribution == "uniform":
            return rng.integers(0, self.keys, ids)
        ranks = np.minimum(np.searchsorted(self._cumulated, rng.random(ids)), self.keys - 1)
        return ranks * self._stride % self.keys

    def batches(self, distribution: str, part: int, ids: int, batch: int) -> list[NDArray[np.int64]]:
        """The same, cut into batches."""
        return cut(self.rows(distribution, part, ids), batch)

    def with_fresh(self, rows: list[NDArray[np.int64]], nonce: int, share: float) -> list[NDArray[np.int64]]:
        """Key batches of these rows in which a share of the keys is in no table, and was in none before (`nonce`)."""
        rng = np.random.default_rng([self._seed, nonce])
        total, changed = 0, []
        for numbers in rows:
            new = rng.choice(len(numbers), max(1, round(share * len(numbers))), replace=False)
            mixed = numbers.copy()
            mixed[new] = FRESH * (nonce + 1) + total + np.arange(len(new))
            total += len(new)
            changed.append(keys_at(mixed))
        return changed


def cut(array: NDArray[np.int64], batch: int) -> list[NDArray[np.int64]]:
    """Copies of consecutive pieces of at most `batch`."""
    return [array[lo : lo + batch].copy() for lo in range(0, len(array), batch)]


@cache
def gradients(most: int, dim: int) -> NDArray[np.float32]:
    """Small gradients (most, dim), the same for everyone."""
    return np.random.default_rng(5).standard_normal((most, dim), np.float32) * np.float32(0.01)
