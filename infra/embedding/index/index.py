"""An index that grows: how many buckets there are, how they are seeded, and when they are made anew.

Buckets lie in reserved memory (see `slab`) and split in place, a bounded number of them per call, so that growing never
makes anyone wait (infra/docs/decisions/0005) and the load stays near `max_load`. An insert that fails below that load
met keys that collide by accident, in an index of a few buckets, or by design; the index is then hashed anew with the
next seeds: crafted keys cost their maker more than they cost the table. Seeds are a function of (name, times hashed),
so a run repeats itself, and nothing outside depends on them.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from infra.embedding.index import buckets as bk
from infra.embedding.index.bucket import PAIR_WORDS
from infra.embedding.index.displace import SEARCH, TREE, split_pairs
from infra.embedding.slab import MAX_ROWS, reserve

MAX_LOAD = 0.85  # of all places; see decision 0005 for what 0.8 and 0.9 cost
MAX_RESEEDS = 4  # new seeds this often for the same number of keys, then twice the buckets after all
PACE = 2  # keys that a split makes room for, until all pairs have split: between two powers of two the load is lower
_MAX_SPLITS = 4096  # pairs split in one call: 0.3 ms
_CHUNK = 4096  # pairs listed at a time


class CuckooIndex:
    """int64 key → int32 row. The layout of `words`, `cells` and `head` is drawn in `bucket`."""

    __slots__ = ("_max_keys", "_max_load", "_name", "_reseeded", "cells", "head", "words")

    words: NDArray[np.int64]  # all that is reserved; the buckets are its first 16 words a pair
    cells: NDArray[np.int32]

    def __init__(
        self, name: str, capacity_hint: int = 0, *, max_keys: int = MAX_ROWS, max_load: float = MAX_LOAD
    ) -> None:
        if not 0 < max_load <= 1:
            raise ValueError(f"index {name!r}: max_load {max_load} is no share of all places")
        self._name, self._max_keys, self._max_load = name, max_keys, max_load
        self._reseeded = (-1, 0)  # (keys present, how often it was hashed anew for them)
        self.head = np.zeros(TREE + SEARCH, np.int64)
        self._begin(self._pairs_for(capacity_hint))

    def __len__(self) -> int:
        return int(self.head[3])

    @property
    def places(self) -> int:
        """Keys that the buckets could hold if every place were used."""
        return int(self.head[0]) * 2 * bk.WAYS

    @property
    def nbytes(self) -> int:
        """Bytes of all buckets."""
        return int(self.head[0]) * PAIR_WORDS * 8

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
        if not len(self) and keys > self.head[5]:
            self._begin(self._pairs_for(keys))

    def drop(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Forget keys; the rows of those that were present."""
        old = np.empty(len(keys), np.int32)
        return old[: bk.drop_rows(self.words, self.cells, self.head, keys, old)]

    def items(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All keys, sorted, and their rows."""
        keys, rows = self.listing()
        order = np.argsort(keys)
        return keys[order], rows[order]

    def listing(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All keys and their rows, in no order that means anything."""
        return self._list(0, int(self.head[0]))

    def chunks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """All keys and their rows in pieces of bounded size, in no order that means anything.

        A key that is set or dropped between two pieces may come or not, and twice where buckets split meanwhile.
        """
        for lo in range(0, int(self.head[0]), _CHUNK):
            yield self._list(lo, min(lo + _CHUNK, int(self.head[0])))

    def grow(self) -> None:
        """Make room for one key more, where the last insert found none. A retry may have to call it again.

        Some pairs split, a sixteenth of them but few enough to take well under a millisecond. Or, where an insert
        failed below the load, all keys are hashed anew.
        """
        pairs = int(self.head[0])
        if len(self) >= self.head[5]:
            self._split(min(max(pairs // 16, 8), _MAX_SPLITS))
            return
        keys, times = self._reseeded
        times = times + 1 if keys == len(self) else 1
        self._reseeded = (len(self), times)
        self._rehash(pairs if times <= MAX_RESEEDS else 2 * pairs)

    def compact(self) -> None:
        """Give back the memory of buckets that the keys present no longer need, by hashing all of them anew."""
        if 2 * (pairs := self._pairs_for(len(self))) <= self.head[0]:
            self._rehash(pairs)

    def copy(self) -> "CuckooIndex":
        """An independent index with the same keys in the same places."""
        twin = CuckooIndex(self._name, max_keys=self._max_keys, max_load=self._max_load)
        twin._resize(int(self.head[0]))
        used = int(self.head[0]) * PAIR_WORDS
        twin.words[:used] = self.words[:used]
        twin.head[:] = self.head
        return twin

    def clear(self) -> None:
        """Forget all keys; keep the size."""
        self._begin(int(self.head[0]))

    def _list(self, lo: int, hi: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Keys and rows of the pairs [lo, hi)."""
        most = min(len(self), (hi - lo) * 2 * bk.WAYS)
        keys, rows = np.empty(most, np.int64), np.empty(most, np.int32)
        words, cells = self.words[lo * PAIR_WORDS : hi * PAIR_WORDS], self.cells[lo * 32 : hi * 32]
        n = bk.list_rows(words, cells, keys, rows)
        return keys[:n], rows[:n]

    def _split(self, count: int) -> None:
        """`count` pairs more, in place."""
        if (int(self.head[0]) + count) * PAIR_WORDS > len(self.words):
            used = self.words[: int(self.head[0]) * PAIR_WORDS]
            self._resize(2 * int(self.head[0]) + count)
            self.words[: len(used)] = used
        split_pairs(self.words, self.cells, self.head, count)
        self.head[5] = self._limit(int(self.head[0]))

    def _rehash(self, pairs: int) -> None:
        """All keys in so many pairs, with new seeds; more pairs where even those do not take them."""
        keys, rows = self.listing()
        old = np.empty(len(keys), np.int32)
        while True:
            self._begin(pairs)
            if bk.set_rows(self.words, self.cells, self.head, keys, rows, old, 0) == len(keys):
                return
            pairs += pairs // 8 + 1

    def _begin(self, pairs: int) -> None:
        """Empty buckets, with the next seeds."""
        self._resize(pairs)
        times = int(self.head[4]) + 1
        raw = hashlib.blake2b(f"index/{self._name}/{times}".encode(), digest_size=16).digest()
        seed, odd = np.frombuffer(raw, "<i8").tolist()
        self.head[:7] = pairs, seed, odd | 1, 0, times, self._limit(pairs), (1 << (pairs - 1).bit_length()) - 1

    def _limit(self, pairs: int) -> int:
        """Keys that so many pairs take before more are made."""
        whole = 1 << (pairs.bit_length() - 1)
        return int(self._max_load * 2 * bk.WAYS * whole) + PACE * (pairs - whole)

    def _resize(self, pairs: int) -> None:
        """Reserve zeros for this many pairs, and as many as the keys that are allowed may come to need."""
        most = max(pairs, self._pairs_for(2 * self._max_keys))
        self.words = reserve((most * PAIR_WORDS,), np.int64)
        self.cells = self.words.view(np.int32)

    def _pairs_for(self, keys: int) -> int:
        """The fewest pairs that take so many keys."""
        whole = 1
        while self._limit(2 * whole) <= keys:
            whole *= 2
        short = max(0, keys - self._limit(whole))
        return min(2 * whole, whole - (-short // PACE))
