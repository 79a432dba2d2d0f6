"""Whom a full table lets go: the least rows by (score, key), exactly, wherever they lie.

Scores are float64 and exact: ticks and frequencies are integers below 2^53, and a norm is the sum of squares in column
order. A vector that holds NaN scores -1: nothing is lost with it.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.life.policy import FREE, Evict

_U = np.uint64


@njit(cache=True, nogil=True)
def _norms(values: NDArray[np.float32], rows: NDArray[np.int32], scores: NDArray[np.float64]) -> None:
    for i in range(len(rows)):
        total = 0.0
        for j in range(values.shape[1]):
            x = np.float64(values[_U(rows[_U(i)]), j])
            total += x * x
        scores[_U(i)] = -1.0 if np.isnan(total) else total


def scores_of(
    evict: Evict,
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    last_seen: NDArray[np.int32],
    frequency: NDArray[np.uint32],
) -> NDArray[np.float64]:
    """What rows (n,) are worth, (n,)."""
    if evict == "smallest-norm":
        scores = np.empty(len(rows), np.float64)
        _norms(values, rows, scores)
        return scores
    return (last_seen if evict == "least-recent" else frequency)[rows].astype(np.float64)


def candidates(last_seen: NDArray[np.int32], protected: NDArray[np.int32]) -> NDArray[np.int32]:
    """Rows that somebody has and that are not among `protected`, which may hold -1."""
    theirs = last_seen != FREE
    theirs[protected[protected >= 0]] = False
    return np.flatnonzero(theirs).astype(np.int32)


def least(scores: NDArray[np.float64], keys: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The n keys that come first by (score, key)."""
    if n >= len(keys):
        return keys
    edge = np.partition(scores, n)[n]
    below = keys[scores < edge]
    tied = keys[scores == edge]
    more = n - len(below)
    return np.concatenate((below, np.partition(tied, more)[:more] if more < len(tied) else tied))
