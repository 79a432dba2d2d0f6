"""An index that grows: which buckets there are, how they are seeded, and when they are made anew.

An insert fails at a high load, and the index then doubles; or far below that, on keys that collide by accident or by
design, and the index is then hashed anew with the next seeds: crafted keys cost their maker more than they cost the
table. Seeds are a function of (name, times hashed), so a run repeats itself, and nothing outside depends on them.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from infra.embedding import buckets as bk

MIN_LOAD = 0.5  # a failed insert below this is the keys' doing: new seeds before more memory …
MAX_RESEEDS = 4  # … this often in a row, then twice the buckets after all


class CuckooIndex:
    """int64 key → int32 row. The layout of `words`, `cells` and `head` is drawn in `buckets`."""

    __slots__ = ("_name", "cells", "head", "words")

    words: NDArray[np.int64]
    cells: NDArray[np.int32]

    def __init__(self, name: str, capacity_hint: int = 0) -> None:
        self._name = name
        self.head = np.zeros(5, np.int64)
        self._begin(_buckets_for(capacity_hint))

    def __len__(self) -> int:
        return int(self.head[3])

    @property
    def places(self) -> int:
        """Keys that the buckets could hold if every place were used."""
        return (int(self.head[0]) + 1) * bk.WAYS

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Row of each key, -1 where absent."""
        rows = np.empty(len(keys), np.int32)
        bk.find_rows(self.words, self.cells, self.head, keys, rows)
        return rows

    def set(self, keys: NDArray[np.int64], rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Map keys to rows, in order; the rows they had before, -1 where none."""
        self.expect(len(keys))
        old = np.empty(len(keys), np.int32)
        done = bk.set_rows(self.words, self.cells, self.head, keys, rows, old, 0)
        while done < len(keys):
            self.grow()
            done = bk.set_rows(self.words, self.cells, self.head, keys, rows, old, done)
        return old

    def expect(self, keys: int) -> None:
        """Make room for a first batch at once instead of step by step; nothing where there are keys already."""
        if not len(self) and keys > bk.MAX_LOAD * self.places:
            self._begin(_buckets_for(keys))

    def drop(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Forget keys; the rows of those that were present."""
        old = np.empty(len(keys), np.int32)
        return old[: bk.drop_rows(self.words, self.cells, self.head, keys, old)]

    def items(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All keys, sorted, and their rows."""
        keys, rows = self._items()
        order = np.argsort(keys)
        return keys[order], rows[order]

    def grow(self) -> None:
        """Make room for at least one key more: twice the buckets, or new seeds where few keys collide much."""
        keys, rows = self._items()
        old = np.empty(len(keys), np.int32)
        buckets = int(self.head[0]) + 1
        reseeds = MAX_RESEEDS if len(keys) < MIN_LOAD * buckets * bk.WAYS else 0
        while True:
            buckets *= 1 if reseeds > 0 else 2
            reseeds -= 1
            self._begin(buckets)
            if bk.set_rows(self.words, self.cells, self.head, keys, rows, old, 0) == len(keys):
                return

    def copy(self) -> "CuckooIndex":
        """An independent index with the same keys in the same places."""
        twin = CuckooIndex(self._name)
        twin.words, twin.cells = _memory(int(self.head[0]) + 1)
        twin.words[:] = self.words
        twin.head[:] = self.head
        return twin

    def clear(self) -> None:
        """Forget all keys; keep the size."""
        self._begin(int(self.head[0]) + 1)

    def _items(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        keys, rows = np.empty(len(self), np.int64), np.empty(len(self), np.int32)
        bk.list_rows(self.words, self.cells, keys, rows)
        return keys, rows

    def _begin(self, buckets: int) -> None:
        """Empty buckets, with the next seeds."""
        self.words, self.cells = _memory(buckets)
        times = int(self.head[4]) + 1
        raw = hashlib.blake2b(f"index/{self._name}/{times}".encode(), digest_size=16).digest()
        seed, odd = np.frombuffer(raw, "<i8").tolist()
        self.head[:] = buckets - 1, seed, odd | 1, 0, times


def _buckets_for(keys: int) -> int:
    """The power of two, at least 2, that holds so many keys below the maximal load."""
    return 1 << max(1, int(keys / (bk.MAX_LOAD * bk.WAYS)).bit_length())  # one bucket has no other


def _memory(buckets: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Zeroed words and cells; a bucket is one cache line only because the first one begins on one."""
    raw = np.zeros(buckets * 8 + 7, np.int64)
    skip = (-raw.ctypes.data // 8) % 8
    words = raw[skip : skip + buckets * 8]
    return words, words.view(np.int32)
