"""Keys become row numbers: the small hash index under counters and catalogue, and the dedupe of a batch.

Rows are numbered in the order in which keys first appear, so nothing here depends on hashing, growth or addresses:
where a key's slot lies never reaches a value. Open addressing with linear probes at no more than half load; a
slot holds a row number, -1 is empty, and the key itself is read from the dense `keys` column. Clients choose keys, so
each table hashes with a secret of its own, behind its last slot: whoever knows this file finds no keys that collide.

The embedding table's index is another one on purpose: it serves readers while it changes, and frees rows; this one
only grows.
"""

import secrets
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Keys = NDArray[np.int64]
# Category and subcategory of an item that the catalogue does not hold: no embedding row, no counter.
UNKNOWN = 0


@njit(cache=True, nogil=True)
def slot_of(key: int, mask: int, secret: int) -> int:
    """First slot to probe."""
    h = np.uint64(secret) * np.uint64(0xD6E8FEB86659FD93)
    h = (np.uint64(key) ^ h ^ (h >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    h ^= h >> np.uint64(29)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(32)
    return np.int64(h & np.uint64(mask))  # type: ignore[return-value]


def empty_slots(size: int) -> NDArray[np.int32]:
    """`size` empty slots, a power of two, and a new secret behind them."""
    slots = np.full(size + 1, -1, np.int32)
    slots[size] = secrets.randbits(31)
    return slots


@njit(cache=True, nogil=True)
def row_of(key: int, slots: NDArray[np.int32], keys: Keys) -> int:
    """Row of a key, -1 where absent."""
    mask = len(slots) - 2
    at = slot_of(key, mask, slots[mask + 1])
    while slots[at] >= 0:
        if keys[slots[at]] == key:
            return np.int64(slots[at])  # type: ignore[return-value]
        at = (at + 1) & mask
    return np.int64(-1)  # type: ignore[return-value]


@njit(cache=True, nogil=True)
def put_row(key: int, row: int, slots: NDArray[np.int32], keys: Keys) -> None:
    """Number an absent key. The caller has reserved room."""
    mask = len(slots) - 2
    at = slot_of(key, mask, slots[mask + 1])
    while slots[at] >= 0:
        at = (at + 1) & mask
    slots[at] = row
    keys[row] = key


@njit(cache=True, nogil=True)
def distinct_into(values: Keys, skip_unknown: bool | np.bool_, unique: Keys, index: Keys) -> int:
    """Distinct values in the order of first appearance; index[i] is the place of values[i], -1 where skipped.

    Kernels pass `np.bool_(...)`: numba would compile this again for each literal.
    """
    size = 16
    while size < 2 * len(values):
        size *= 2
    slots = np.full(size, -1, np.int32)
    mask = size - 1
    secret = np.random.randint(1, 1 << 31)  # numba's own generator, which the system seeds; no value depends on it
    n = 0
    for i in range(len(values)):
        key = values[i]
        if skip_unknown and key == UNKNOWN:
            index[i] = -1
            continue
        at = slot_of(key, mask, secret)
        while slots[at] >= 0 and unique[slots[at]] != key:
            at = (at + 1) & mask
        if slots[at] < 0:
            slots[at] = n
            unique[n] = key
            n += 1
        index[i] = slots[at]
    return n


@njit(cache=True, nogil=True)
def distinct(values: Keys, skip_unknown: bool | np.bool_) -> tuple[Keys, Keys]:
    """(distinct values in the order of first appearance, index of each value in them)."""
    unique = np.empty(len(values), np.int64)
    index = np.empty(len(values), np.int64)
    n = distinct_into(values, skip_unknown, unique, index)
    return unique[:n].copy(), index


@njit(cache=True, nogil=True)
def _rehash(slots: NDArray[np.int32], keys: Keys, n: int) -> None:
    mask = len(slots) - 2
    for row in range(n):
        at = slot_of(keys[row], mask, slots[mask + 1])
        while slots[at] >= 0:
            at = (at + 1) & mask
        slots[at] = row


class KeyIndex:
    """Key → row number. Kernels read and write `slots`, `keys` and the count; Python only makes room."""

    __slots__ = ("keys", "n", "slots")  # the last of `slots` is the secret

    def __init__(self, capacity: int = 64) -> None:
        size = 16
        while size < 2 * capacity:
            size *= 2
        self.slots: NDArray[np.int32] = empty_slots(size)
        self.keys: Keys = np.empty(size // 2, np.int64)
        self.n = 0

    def __len__(self) -> int:
        return self.n

    @property
    def capacity(self) -> int:
        """Rows that fit before the next growth."""
        return len(self.keys)

    def reserve(self, more: int) -> bool:
        """Make room for `more` new keys; True where the capacity grew, so that columns beside must grow too."""
        if self.n + more <= len(self.keys):
            return False
        size = len(self.slots) - 1
        while size // 2 < self.n + more:
            size *= 2
        self.slots = empty_slots(size)
        self.keys = grown(self.keys, size // 2)
        _rehash(self.slots, self.keys, self.n)
        return True

    def copy(self) -> "KeyIndex":
        twin = KeyIndex.__new__(KeyIndex)
        twin.slots, twin.keys, twin.n = self.slots.copy(), self.keys.copy(), self.n
        return twin


def grown(column: NDArray[Any], capacity: int) -> NDArray[Any]:
    """The column with room for `capacity` rows; what was there stays, the rest is zero."""
    out = np.zeros((capacity, *column.shape[1:]), column.dtype)
    out[: len(column)] = column
    return out


def own(array: NDArray[Any], dtype: type[np.generic] = np.int64) -> NDArray[Any]:
    """Contiguous, writable, of this type: numba compiles every kernel again for read-only arrays."""
    out = np.ascontiguousarray(array, dtype)
    return out if out.flags.writeable else out.copy()
