"""Expired rows: which they are is decided by event time, and sweeping only frees their memory.

A chunk of 1,024 rows keeps a lower bound of its rows' `last_seen`. A row that is seen again raises its own number and
leaves the bound, which stays a lower one; a chunk is read only when its bound falls under the horizon, and gets its
exact bound then. So a tick costs one comparison a chunk, and 4 KB for each chunk that may hold an expired row. Free
rows carry FREE, which no horizon reaches.
"""

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.insert import CHUNK_BITS
from infra.embedding.life.policy import FREE

_CHUNK = 1 << CHUNK_BITS
_U = np.uint64


@njit(cache=True, nogil=True)
def collect_expired(
    last_seen: NDArray[np.int32],
    row_keys: NDArray[np.int64],
    bounds: NDArray[np.int32],
    high: int,
    horizon: int,
    gone: NDArray[np.int64],
) -> int:
    """gone[0..m) = keys of expired rows, as many as fit; m. Bounds of chunks that were read to the end become exact."""
    m = 0
    for chunk in range((high + _CHUNK - 1) >> CHUNK_BITS):
        if bounds[chunk] >= horizon:
            continue
        least = np.int64(FREE)
        for row in range(chunk << CHUNK_BITS, min((chunk + 1) << CHUNK_BITS, high)):
            seen = last_seen[_U(row)]
            if seen >= horizon:
                least = min(least, np.int64(seen))
                continue
            if m == len(gone):
                return m
            gone[_U(m)] = row_keys[_U(row)]
            m += 1
        bounds[chunk] = least
    return m


@njit(cache=True, nogil=True)
def count_expired(last_seen: NDArray[np.int32], bounds: NDArray[np.int32], high: int, horizon: int) -> int:
    """How many rows are expired and not yet swept."""
    n = 0
    for chunk in range((high + _CHUNK - 1) >> CHUNK_BITS):
        if bounds[chunk] < horizon:
            for row in range(chunk << CHUNK_BITS, min((chunk + 1) << CHUNK_BITS, high)):
                n += last_seen[_U(row)] < horizon
    return n


def bounds_of(last_seen: NDArray[np.int32], high: int, bounds: NDArray[np.int32]) -> None:
    """Make all bounds exact."""
    bounds[:] = FREE
    for chunk in range((high + _CHUNK - 1) >> CHUNK_BITS):
        bounds[chunk] = last_seen[chunk << CHUNK_BITS : min((chunk + 1) << CHUNK_BITS, high)].min()


class Tombstones:
    """Keys that lost their row since they were last asked for. Bounded by how many distinct ones there are."""

    __slots__ = ("_keys", "_n", "_parts")

    _COLLECT = 1 << 16  # keys after which repeated ones are dropped, again at each doubling

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)  # distinct
        self._parts: list[NDArray[np.int64]] = []  # not yet among them
        self._n = 0

    def add(self, keys: NDArray[np.int64]) -> None:
        """These are gone, for now."""
        if len(keys):
            self._parts.append(np.array(keys, np.int64))
            self._n += len(keys)
            if self._n > max(self._COLLECT, len(self._keys)):
                self._settle()

    def take(self, find: Callable[[NDArray[np.int64]], NDArray[np.int32]]) -> NDArray[np.int64]:
        """Those that are still absent by `find`, sorted; they are forgotten here."""
        if not self._n and not len(self._keys):
            return self._keys
        self._settle()
        keys, self._keys = self._keys, np.empty(0, np.int64)
        return keys[find(keys) < 0]

    def copy(self) -> "Tombstones":
        """Independent of this one."""
        twin = Tombstones()
        twin._keys, twin._parts, twin._n = self._keys, list(self._parts), self._n
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 8 * (self._n + len(self._keys))

    def _settle(self) -> None:
        self._keys = np.unique(np.concatenate((self._keys, *self._parts)))
        self._parts, self._n = [], 0
