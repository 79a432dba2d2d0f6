"""The catalogue: category, subcategory, title words and publishing time of every item, as of a tick.

An item counts from its `known_tick`, the tick whose end its `ingested_at` precedes. Records of an item form a chain
from the newest back, and a reader takes the first that its tick may know; so the trainer can hold records that are
ahead of the tick it learns, and needs no second catalogue that lags. Adding records twice, or in another order of
ticks, gives the same catalogue; of two records of one item and tick the one added last holds.

    item ─index─▶ entry ─newest─▶ row ─previous─▶ row …   row: key category subcategory published_ms known_tick words
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.ticks import Timeline
from stream.features.keys import UNKNOWN, KeyIndex, grown, own, put_row, row_of

Keys = NDArray[np.int64]
Tensors = dict[str, NDArray[Any]]
FIELDS = ("keys", "category", "subcategory", "published_ms", "known_tick")
# Columns of the `facts` matrix.
CATEGORY, SUBCATEGORY, PUBLISHED, KNOWN, PREVIOUS, WORD_AT, WORD_END, ENTRY = range(8)


class ItemRows(NamedTuple):
    """Catalogue records, columnar: the item section of a version.

    published_ms -1: unknown; the words of record i are words[word_offsets[i] : word_offsets[i + 1]].
    """

    keys: Keys
    category: Keys
    subcategory: Keys
    published_ms: Keys
    known_tick: Keys
    word_offsets: Keys
    words: Keys

    @staticmethod
    def of(
        *,
        item: Keys,
        category: Keys,
        subcategory: Keys,
        words: tuple[Keys, Keys],
        published_ms: Keys,
        ingested_ms: Keys,
        timeline: Timeline,
    ) -> "ItemRows":
        """From the columns of `items` records (heartbeats taken out before)."""
        known = np.asarray(ingested_ms, np.int64) // timeline.tick_ms
        columns = (item, category, subcategory, published_ms, known, *words)
        return ItemRows(*(own(np.asarray(c)) for c in columns))

    def tensors(self, prefix: str = "items") -> Tensors:
        return {f"{prefix}/{name}": column for name, column in zip(self._fields, self, strict=True)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, NDArray[Any]], prefix: str = "items") -> "ItemRows":
        """The records of a section; none where it is missing."""
        if f"{prefix}/keys" not in tensors:
            return NO_ITEMS
        return ItemRows(*(own(tensors[f"{prefix}/{name}"]) for name in ItemRows._fields))


_NONE = np.empty(0, np.int64)
NO_ITEMS = ItemRows(_NONE, _NONE, _NONE, _NONE, _NONE, np.zeros(1, np.int64), _NONE)


@njit(cache=True, nogil=True)
def row_as_of(key: int, tick: int, slots: NDArray[np.int32], keys: Keys, newest: Keys, facts: NDArray[np.int64]) -> int:
    """Row of what is known of an item at `tick`, -1 for nothing."""
    entry = row_of(key, slots, keys)
    if entry < 0:
        return np.int64(-1)  # type: ignore[return-value]
    row: int = newest[entry]
    while row >= 0 and facts[row, KNOWN] > tick:
        row = facts[row, PREVIOUS]
    return row


@njit(cache=True, nogil=True)
def _rows_as_of(
    wanted: Keys, tick: int, slots: NDArray[np.int32], keys: Keys, newest: Keys, facts: NDArray[np.int64]
) -> Keys:
    out = np.empty(len(wanted), np.int64)
    for i in range(len(wanted)):
        out[i] = row_as_of(wanted[i], tick, slots, keys, newest, facts)
    return out


@njit(cache=True, nogil=True)
def _categories(
    wanted: Keys, tick: int, slots: NDArray[np.int32], keys: Keys, newest: Keys, facts: NDArray[np.int64]
) -> Keys:
    out = np.empty(len(wanted), np.int64)
    for i in range(len(wanted)):
        row = row_as_of(wanted[i], tick, slots, keys, newest, facts)
        out[i] = facts[row, CATEGORY] if row >= 0 else UNKNOWN
    return out


@njit(cache=True, nogil=True)
def _add(
    new: NDArray[np.int64],
    new_keys: Keys,
    word_offsets: Keys,
    new_words: Keys,
    n: tuple[int, int, int],
    slots: NDArray[np.int32],
    keys: Keys,
    newest: Keys,
    facts: NDArray[np.int64],
    words: Keys,
) -> tuple[int, int, int]:
    entries, rows, n_words = n
    for i in range(len(new_keys)):
        entry = row_of(new_keys[i], slots, keys)
        if entry < 0:
            entry = entries
            entries += 1
            put_row(new_keys[i], entry, slots, keys)
            newest[entry] = -1
        after = np.int64(-1)
        row = newest[entry]
        while row >= 0 and facts[row, KNOWN] > new[i, 3]:
            after = row
            row = facts[row, PREVIOUS]
        lo, hi = word_offsets[i], word_offsets[i + 1]
        if row < 0 or facts[row, KNOWN] != new[i, 3]:
            facts[rows, PREVIOUS] = row
            if after < 0:
                newest[entry] = rows
            else:
                facts[after, PREVIOUS] = rows
            row = rows
            rows += 1
            facts[row, ENTRY] = entry
        else:
            same = facts[row, WORD_END] - facts[row, WORD_AT] == hi - lo
            for j in range(hi - lo if same else 0):
                same = same and words[facts[row, WORD_AT] + j] == new_words[lo + j]
            if same:
                for j in range(KNOWN):
                    facts[row, j] = new[i, j]
                continue
        for j in range(KNOWN + 1):
            facts[row, j] = new[i, j]
        facts[row, WORD_AT] = n_words
        for j in range(lo, hi):
            words[n_words] = new_words[j]
            n_words += 1
        facts[row, WORD_END] = n_words
    return entries, rows, n_words


@njit(cache=True, nogil=True)
def _select(order: Keys, facts: NDArray[np.int64], words: Keys, keys: Keys) -> Any:
    out = np.empty((5, len(order)), np.int64)
    offsets = np.zeros(len(order) + 1, np.int64)
    for i in range(len(order)):
        row = order[i]
        out[0, i] = keys[facts[row, ENTRY]]
        for j in range(4):
            out[1 + j, i] = facts[row, j]
        offsets[i + 1] = offsets[i] + facts[row, WORD_END] - facts[row, WORD_AT]
    values = np.empty(offsets[-1], np.int64)
    for i in range(len(order)):
        at = facts[order[i], WORD_AT]
        for j in range(offsets[i + 1] - offsets[i]):
            values[offsets[i] + j] = words[at + j]
    return out, offsets, values


class Catalogue:
    """Items and what is known of them at each tick. Reads never insert."""

    __slots__ = ("_n_words", "facts", "index", "n_rows", "newest", "newest_tick", "words")

    def __init__(self) -> None:
        self.index = KeyIndex()
        self.newest: Keys = np.zeros(self.index.capacity, np.int64)
        self.facts: NDArray[np.int64] = np.zeros((64, 8), np.int64)
        self.words: Keys = np.zeros(256, np.int64)
        self.n_rows = self._n_words = 0
        self.newest_tick = -1  # the largest known_tick held

    def __len__(self) -> int:
        """Distinct items."""
        return self.index.n

    @property
    def columns(self) -> tuple[NDArray[np.int32], Keys, Keys, NDArray[np.int64]]:
        """(slots, keys, newest, facts), at capacity, for kernels."""
        return self.index.slots, self.index.keys, self.newest, self.facts

    def add(self, items: ItemRows) -> None:
        """Take records in. Idempotent; records may be ahead of the tick that readers are at."""
        if not len(items.keys):
            return
        self._reserve(len(items.keys), len(items.words))
        facts = np.stack([items.category, items.subcategory, items.published_ms, items.known_tick], axis=1)
        counts = (self.index.n, self.n_rows, self._n_words)
        self.index.n, self.n_rows, self._n_words = _add(
            facts, own(items.keys), own(items.word_offsets), own(items.words), counts, *self.columns, self.words
        )
        self.newest_tick = max(self.newest_tick, int(items.known_tick.max()))

    def _reserve(self, rows: int, words: int) -> None:
        if self.index.reserve(rows):
            self.newest = grown(self.newest, self.index.capacity)
        if self.n_rows + rows > len(self.facts):
            self.facts = grown(self.facts, 2 * (self.n_rows + rows))
        if self._n_words + words > len(self.words):
            self.words = grown(self.words, 2 * (self._n_words + words))

    def rows(self, keys: Keys, tick: int) -> Keys:
        """Rows (n,) of `facts` as of `tick`, -1 where nothing is known."""
        out: Keys = _rows_as_of(own(keys), tick, *self.columns)
        return out

    def categories(self, keys: Keys, tick: int) -> Keys:
        """Category keys (n,) as of `tick`; UNKNOWN where nothing is known."""
        out: Keys = _categories(own(keys), tick, *self.columns)
        return out

    def section(self, after_tick: int, through_tick: int) -> ItemRows:
        """A version's item section: after_tick < known_tick <= through_tick, sorted by (key, known_tick)."""
        if after_tick >= self.newest_tick:
            return NO_ITEMS
        known = self.facts[: self.n_rows, KNOWN]
        return self._sorted(np.flatnonzero((known > after_tick) & (known <= through_tick)))

    def _sorted(self, rows: Keys) -> ItemRows:
        keys = self.index.keys[self.facts[rows, ENTRY]]
        order = rows[np.lexsort((self.facts[rows, KNOWN], keys))]
        columns, offsets, words = _select(order, self.facts, self.words, self.index.keys)
        return ItemRows(columns[0], columns[1], columns[2], columns[3], columns[4], offsets, words)

    def export(self, prefix: str = "items") -> Tensors:
        """All records as named tensors, sorted by (key, known_tick)."""
        return self._sorted(np.arange(self.n_rows)).tensors(prefix)

    @staticmethod
    def restore(tensors: Mapping[str, NDArray[Any]], prefix: str = "items") -> "Catalogue":
        out = Catalogue()
        out.add(ItemRows.from_tensors(tensors, prefix))
        return out

    def digest(self) -> bytes:
        """16 bytes over all records sorted by (key, known_tick)."""
        h = hashlib.blake2b(digest_size=16)
        for name, array in self.export().items():
            h.update(name.encode() + b"\0")
            h.update(np.ascontiguousarray(array).data)
        return h.digest()

    def copy(self) -> "Catalogue":
        twin = Catalogue.__new__(Catalogue)
        twin.index, twin.newest, twin.facts = self.index.copy(), self.newest.copy(), self.facts.copy()
        twin.words, twin.n_rows, twin._n_words = self.words.copy(), self.n_rows, self._n_words
        twin.newest_tick = self.newest_tick
        return twin
