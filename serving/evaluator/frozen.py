"""What a nightly pipeline's feature table says of an item: its context as of M − 1, the whole day long.

The same numbers as `item_context` at M − 1 with the night's counters. They do not change until the next night, so each
item is computed once a night and found again by its key.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from serving.evaluator.nightly import before_midnight
from serving.model import View
from stream.features.catalogue import Catalogue
from stream.features.context import N_FEATURES, item_context
from stream.features.keys import KeyIndex, grown, put_row, row_of


class FrozenContext:
    """Context rows of the items asked for since the night began."""

    def __init__(self) -> None:
        self._begin(None)

    def _begin(self, night: View | None) -> None:
        self._night = night
        self._index = KeyIndex(4_096)
        self._rows = np.empty((self._index.capacity, N_FEATURES), np.float32)

    def of(self, items: NDArray[np.int64], night: View, midnight: int, catalogue: Catalogue) -> NDArray[np.float32]:
        """Features (n, N_FEATURES) of distinct items (n,), as item_context gives them at M − 1."""
        if night is not self._night:
            self._begin(night)
        index = self._index
        context = np.empty((len(items), N_FEATURES), np.float32)
        unknown = _read(items, index.slots, index.keys, self._rows, context)
        if len(unknown):
            fresh = items[unknown]
            rows = item_context(fresh, night.counters, catalogue, before_midnight(midnight))
            context[unknown] = rows
            if index.reserve(len(fresh)):
                self._rows = grown(self._rows, index.capacity)
            index.n = _keep(fresh, rows, index.n, index.slots, index.keys, self._rows)
        return context


@njit(cache=True, nogil=True)
def _read(
    items: NDArray[np.int64],
    slots: NDArray[np.int32],
    keys: NDArray[np.int64],
    rows: NDArray[np.float32],
    out: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Fill out[i] where the item is known; the i of the others."""
    unknown = np.empty(len(items), np.int64)
    n = 0
    for i in range(len(items)):
        row = row_of(items[i], slots, keys)
        if row < 0:
            unknown[n] = i
            n += 1
        else:
            for j in range(rows.shape[1]):
                out[i, j] = rows[row, j]
    return unknown[:n].copy()


@njit(cache=True, nogil=True)
def _keep(
    items: NDArray[np.int64],
    new: NDArray[np.float32],
    n: int,
    slots: NDArray[np.int32],
    keys: NDArray[np.int64],
    rows: NDArray[np.float32],
) -> int:
    for i in range(len(items)):
        put_row(items[i], n, slots, keys)
        for j in range(rows.shape[1]):
            rows[n, j] = new[i, j]
        n += 1
    return n
