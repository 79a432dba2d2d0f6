"""What a nightly pipeline's feature table says of an item: its context as of M − 1, the whole day long.

The same numbers as `item_context` at M − 1 with the night's counters. They do not change until the next night, so each
item is computed once a night and found again by its key.
"""

import numpy as np
from numpy.typing import NDArray

from serving.evaluator.nightly import before_midnight
from serving.model import View
from stream.features.catalogue import Catalogue
from stream.features.context import N_FEATURES, item_context


class FrozenContext:
    """Context rows of the items asked for since the night began, sorted by key."""

    def __init__(self) -> None:
        self._begin(None)

    def _begin(self, night: View | None) -> None:
        self._night = night
        self._keys = np.empty(0, np.int64)
        self._rows = np.empty((0, N_FEATURES), np.float32)

    def of(self, items: NDArray[np.int64], night: View, midnight: int, catalogue: Catalogue) -> NDArray[np.float32]:
        """Features (n, N_FEATURES) of distinct items (n,), as item_context gives them at M − 1."""
        if night is not self._night:
            self._begin(night)
        at = np.searchsorted(self._keys, items)
        known = self._keys[np.minimum(at, len(self._keys) - 1)] == items if len(self._keys) else at < 0
        if not known.all():
            fresh = np.sort(items[~known])
            where = np.searchsorted(self._keys, fresh)
            rows = item_context(fresh, night.counters, catalogue, before_midnight(midnight))
            self._keys = np.insert(self._keys, where, fresh)
            self._rows = np.insert(self._rows, where, rows, axis=0)
            at = np.searchsorted(self._keys, items)
        context: NDArray[np.float32] = self._rows[at]
        return context
