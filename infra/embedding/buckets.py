"""Kernels of the cuckoo index: int64 key → int32 row, in buckets of one cache line, two buckets per key.

    byte  0   8   16  24  32  40   44   48   52   56   60   64
          key key key key key row  row  row  row  row  spare       row holds row + 1; 0 marks a free place

`words` sees the index as int64 (8 a bucket, keys at 0..4), `cells` sees the same memory as int32 (16 a bucket, rows
at 10..14); a spot is bucket · 8 + place. Zeroed memory is an empty index. A key lies in one of its two buckets and
nowhere else, so a look-up reads at most two cache lines, present or absent, whatever the other keys are. `head` is
[buckets − 1, seed, odd multiplier, keys present, times hashed].

An insert that finds both buckets full looks breadth-first for a shortest chain of keys that can each step into their
other bucket (libcuckoo, Li et al. 2014), and moves only once the chain is known: one that fails has changed nothing.
Linear probing was decided against: crafted keys make it quadratic.

numba's cache knows a kernel by its own file: after an edit here, `touch` those that call from elsewhere (cuckoo.py).
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.initial import mix64
from infra.embedding.machine import Int, prefetch

WAYS = 5  # places in a bucket
MAX_LOAD = 0.85  # of all places; chains of two or three moves still free a place here
_SEARCH = 512  # buckets a search may visit: chains of up to 4 moves
_BLOCK = 32  # keys whose buckets are fetched together before the first of them is read

_U = np.uint64  # indices are unsigned: numba spends a branch on each signed one, to let -1 mean the last


@njit(cache=True, nogil=True)
def _buckets(mask: np.uint64, seed: np.uint64, odd: np.uint64, key: Int) -> tuple[np.uint64, np.uint64]:
    """The two buckets of a key, never the same: halves of one hash, whose seeds nobody who makes keys has to know."""
    x = (_U(key) ^ seed) * odd
    h = mix64(x ^ (x >> _U(32)))
    a = h & mask
    b = (h >> _U(32)) & mask
    return a, (a ^ _U(1) if a == b else b)


@njit(cache=True, nogil=True)
def cell_of(spot: Int) -> np.uint64:
    """Index in `cells` of the row at `spot` = bucket · 8 + place, an index in `words`."""
    return ((_U(spot) >> _U(3)) << _U(4)) + _U(10) + (_U(spot) & _U(7))


@njit(cache=True, nogil=True)
def _spot_in(words: NDArray[np.int64], cells: NDArray[np.int32], bucket: np.uint64, key: Int) -> Int:
    """Where in this bucket the key stands, -1 where it does not. No early exit: it would be guessed wrong often."""
    spot: Int = -1
    for i in range(WAYS):
        if words[(bucket << _U(3)) + _U(i)] == key and cells[(bucket << _U(4)) + _U(10 + i)] != 0:
            spot = np.int64(bucket << _U(3)) + i
    return spot


@njit(cache=True, nogil=True)
def _room(cells: NDArray[np.int32], bucket: np.uint64) -> Int:
    """A free spot in this bucket, -1 where it is full."""
    spot: Int = -1
    for i in range(WAYS):
        if cells[(bucket << _U(4)) + _U(10 + i)] == 0:
            spot = np.int64(bucket << _U(3)) + i
    return spot


@njit(cache=True, nogil=True)
def approach(
    words: NDArray[np.int64],
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    start: Int,
    near: NDArray[np.uint64],
    far: NDArray[np.uint64],
) -> Int:
    """Hash the next block of keys, from `start` on, and prefetch its buckets; where the block ends."""
    mask, seed, odd = _U(head[0]), _U(head[1]), _U(head[2])
    n = min(len(near), len(keys) - start)
    for i in range(n):
        a, b = _buckets(mask, seed, odd, keys[_U(start + i)])
        near[_U(i)], far[_U(i)] = a, b
        prefetch(words, np.int64(a << _U(3)))
        prefetch(words, np.int64(b << _U(3)))
    return start + n


@njit(cache=True, nogil=True)
def block() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Scratch for `approach`: the near and far buckets of a block."""
    return np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64)


@njit(cache=True, nogil=True)
def locate(words: NDArray[np.int64], cells: NDArray[np.int32], a: np.uint64, b: np.uint64, key: Int) -> Int:
    """Where the key stands, -1 where it is absent."""
    spot = _spot_in(words, cells, a, key)
    return spot if spot >= 0 else _spot_in(words, cells, b, key)


@njit(cache=True, nogil=True)
def _displace(
    words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], a: np.uint64, b: np.uint64
) -> Int:
    """Free a spot in bucket a or b by moving keys to their other buckets; the spot, or -1 and nothing moved.

    The search is breadth-first, so the chain found is a shortest one and names no bucket twice.
    """
    mask, seed, odd = _U(head[0]), _U(head[1]), _U(head[2])
    bucket = np.empty(_SEARCH, np.uint64)  # visited buckets, in order …
    source = np.empty(_SEARCH, np.int64)  # … and the spot whose key would move there
    parent = np.empty(_SEARCH, np.int64)  # … which lies in bucket[parent]; -1 at a and b
    bucket[0], bucket[1] = a, b
    parent[0] = parent[1] = -1
    seen, at = 2, 0
    while at < seen:
        for i in range(WAYS):
            spot = np.int64(bucket[at] << _U(3)) + i
            first, second = _buckets(mask, seed, odd, words[_U(spot)])
            other = second if first == bucket[at] else first
            free = _room(cells, other)
            if free >= 0:
                return _shift(words, cells, source, parent, at, spot, free)
            if seen < _SEARCH:
                bucket[seen], source[seen], parent[seen] = other, spot, at
                seen += 1
        at += 1
    return -1


@njit(cache=True, nogil=True)
def _shift(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    source: NDArray[np.int64],
    parent: NDArray[np.int64],
    at: Int,
    spot: Int,
    free: Int,
) -> Int:
    """Walk a chain back to its start: each key steps into the spot freed before it. The spot that is free at last."""
    while True:
        words[_U(free)] = words[_U(spot)]
        cells[cell_of(free)] = cells[cell_of(spot)]
        cells[cell_of(spot)] = 0
        if parent[at] < 0:
            return spot
        free, spot = spot, source[at]
        at = parent[at]


@njit(cache=True, nogil=True)
def make_room(
    words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], a: np.uint64, b: np.uint64
) -> Int:
    """A free spot for a key of buckets a and b; -1, and nothing changed, where the index must grow first."""
    if head[3] + 1 > MAX_LOAD * WAYS * (head[0] + 1):
        return -1
    spot = _room(cells, a)
    if spot < 0:
        spot = _room(cells, b)
    return spot if spot >= 0 else _displace(words, cells, head, a, b)


@njit(cache=True, nogil=True)
def occupy(
    words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], spot: Int, key: Int, row: Int
) -> None:
    """Write an absent key into a free spot."""
    words[_U(spot)] = key
    cells[cell_of(spot)] = row + 1
    head[3] += 1


@njit(cache=True, nogil=True)
def find_rows(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    rows: NDArray[np.int32],
) -> None:
    """rows[i] = row of keys[i], -1 where absent."""
    near, far = block()
    lo: Int = 0
    while lo < len(keys):
        hi = approach(words, head, keys, lo, near, far)
        for i in range(lo, hi):
            spot = locate(words, cells, near[_U(i - lo)], far[_U(i - lo)], keys[_U(i)])
            rows[_U(i)] = cells[cell_of(spot)] - 1 if spot >= 0 else -1
        lo = hi


@njit(cache=True, nogil=True)
def set_rows(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    rows: NDArray[np.int32],
    old: NDArray[np.int32],
    start: Int,
) -> Int:
    """Map keys[i] to rows[i] from i = start on, old[i] = the row before or -1; the first i that needs growth, or n."""
    near, far = block()
    lo = start
    while lo < len(keys):
        hi = approach(words, head, keys, lo, near, far)
        for i in range(lo, hi):
            a, b, key = near[_U(i - lo)], far[_U(i - lo)], keys[_U(i)]
            spot = locate(words, cells, a, b, key)
            if spot >= 0:
                old[_U(i)] = cells[cell_of(spot)] - 1
                cells[cell_of(spot)] = rows[_U(i)] + 1
                continue
            spot = make_room(words, cells, head, a, b)
            if spot < 0:
                return i
            old[_U(i)] = -1
            occupy(words, cells, head, spot, key, rows[_U(i)])
        lo = hi
    return len(keys)


@njit(cache=True, nogil=True)
def drop_rows(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    old: NDArray[np.int32],
) -> Int:
    """Forget keys; old[j] = the row of the j-th one that was present. How many were."""
    near, far = block()
    dropped = 0
    lo: Int = 0
    while lo < len(keys):
        hi = approach(words, head, keys, lo, near, far)
        for i in range(lo, hi):
            spot = locate(words, cells, near[_U(i - lo)], far[_U(i - lo)], keys[_U(i)])
            if spot >= 0:
                old[_U(dropped)] = cells[cell_of(spot)] - 1
                cells[cell_of(spot)] = 0
                dropped += 1
        lo = hi
    head[3] -= dropped
    return dropped


@njit(cache=True, nogil=True)
def list_rows(
    words: NDArray[np.int64], cells: NDArray[np.int32], keys: NDArray[np.int64], rows: NDArray[np.int32]
) -> Int:
    """All (key, row), in the order of the buckets, which is nobody's business outside. How many."""
    n = 0
    for bucket in range(len(words) >> 3):
        for i in range(WAYS):
            spot = bucket * 8 + i
            row = cells[cell_of(spot)]
            if row:
                keys[_U(n)] = words[_U(spot)]
                rows[_U(n)] = row - 1
                n += 1
    return n
