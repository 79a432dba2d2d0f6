"""How often each distinct key of a batch occurs: what an admission filter counts.

A key of the user side occurs once an impression (a history entry once each time it is listed), a key of the item side
once for each item shown that has it and that sampling kept. A word counts on both sides.
"""

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import Batch

Ints = NDArray[np.int64]


def occurrences(batch: Batch, slot: str) -> Ints:
    """Occurrences (n,) of `batch.keys[slot]` (n,), each at least 0: 0 for a key that only dropped rows have."""
    n = len(batch.keys[slot])
    if slot in ("user", "hour", "history", "position"):
        return _count(getattr(batch, slot), None, n)
    if slot == "read_subcategory":
        return _count(batch.read_subcategory, _uses(batch.read, len(batch.read_subcategory)), n)
    shown = _uses(batch.item_of_row, batch.n_items)
    if slot == "words":
        read = _uses(batch.read, len(batch.read_subcategory))
        return _spread(batch.words, batch.word_offsets, shown, n) + _spread(
            batch.read_words, batch.read_word_offsets, read, n
        )
    return _count(getattr(batch, slot), shown, n)


def _uses(index: Ints, n: int) -> Ints:
    """How often each of n things is pointed at; -1 points at none."""
    return np.bincount(index[index >= 0], minlength=n)


def _spread(index: Ints, offsets: Ints, times: Ints, n: int) -> Ints:
    """Counts over a ragged index whose list i is used `times[i]` times."""
    return _count(index, np.repeat(times, np.diff(offsets)), n)


def _count(index: Ints, times: Ints | None, n: int) -> Ints:
    """Σ of `times` (1 where None) by index, in exact integers."""
    known = index >= 0
    out = np.zeros(n, np.int64)
    np.add.at(out, index[known], 1 if times is None else times[known])
    return out
