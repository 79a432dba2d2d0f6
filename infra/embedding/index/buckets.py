"""Kernels of the cuckoo index over batches of keys: int64 key → int32 row, two buckets per key.

A key lies in one of its two buckets and nowhere else, so a look-up reads at most two cache lines, present or absent,
whatever the other keys are. Layout and hash are in `bucket`; what an insert does when both buckets are full, and how
the index grows, in `displace`. Linear probing was decided against: crafted keys make it quadratic.

numba's cache knows a kernel by its own file: after an edit in `bucket`, `displace` or here, delete the `*.nb*` of those
that call it (`find . -name "*.nb*" -delete`).
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.index.bucket import WAYS, cell_of, far_of, hash_of, locate, near_of, room_in_emptier, row_at
from infra.embedding.index.displace import displace, fetch_others
from infra.embedding.machine import Int, leaf, prefetch

__all__ = [
    "WAYS", "approach", "block", "cell_of", "drop_rows", "fetch_others", "find_rows", "list_rows", "locate",
    "make_room", "occupy", "row_at", "set_rows",
]  # fmt: skip

BLOCK = 128  # keys whose buckets are fetched together: 16 KB, and long enough to hide the memory behind the first
FIND_BLOCK = 64  # the same where nothing is done between blocks

_U = np.uint64


@njit(cache=True, nogil=True)
def _hash_block(
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    start: Int,
    near: NDArray[np.uint64],
    far: NDArray[np.uint64],
) -> Int:
    """The buckets of the next block of keys, from `start` on; where the block ends. LLVM hashes several at a time."""
    pairs, seed, odd, wide = _U(head[0]), _U(head[1]), _U(head[2]), _U(head[6])
    n = min(len(near), len(keys) - start)
    for i in range(n):
        h = hash_of(seed, odd, keys[_U(start + i)])
        near[_U(i)] = near_of(pairs, wide, h)
        far[_U(i)] = far_of(pairs, wide, h)
    return start + n


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
    end = _hash_block(head, keys, start, near, far)
    for i in range(end - start):
        prefetch(words, np.int64(near[_U(i)] << _U(3)))
        prefetch(words, np.int64(far[_U(i)] << _U(3)))
    return end


@njit(cache=True, nogil=True)
def block() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Scratch for `approach`: the near and far buckets of a block."""
    return np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64)


@leaf
def make_room(
    words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], a: np.uint64, b: np.uint64
) -> Int:
    """A free spot for a key of buckets a and b; -1, and nothing changed, where the index must grow first."""
    if head[3] >= head[5]:
        return -1
    spot = room_in_emptier(cells, a, b)
    return spot if spot >= 0 else displace(words, cells, head, a, b)


@leaf
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
    """rows[i] = row of keys[i], -1 where absent.

    One key's prefetches go with another's comparison, a block later, so that memory and processor work at once: 7.4 ns
    a key (8 M keys, random), 10 where a block is prefetched first and then compared.
    """
    near, far = np.empty(FIND_BLOCK, np.uint64), np.empty(FIND_BLOCK, np.uint64)
    next_near, next_far = np.empty(FIND_BLOCK, np.uint64), np.empty(FIND_BLOCK, np.uint64)
    lo: Int = 0
    hi = approach(words, head, keys, lo, near, far)
    while lo < len(keys):
        end = _hash_block(head, keys, hi, next_near, next_far)
        for i in range(hi - lo):
            if i < end - hi:
                prefetch(words, np.int64(next_near[_U(i)] << _U(3)))
                prefetch(words, np.int64(next_far[_U(i)] << _U(3)))
            rows[_U(lo + i)] = row_at(words, cells, near[_U(i)], far[_U(i)], keys[_U(lo + i)])
        near, far, next_near, next_far = next_near, next_far, near, far
        lo, hi = hi, end


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
                words[_U(spot)] = 0  # whoever searches memory for a forgotten key finds none
                dropped += 1
        lo = hi
    head[3] -= dropped
    return dropped


@njit(cache=True, nogil=True)
def list_rows(
    words: NDArray[np.int64], cells: NDArray[np.int32], keys: NDArray[np.int64], rows: NDArray[np.int32]
) -> Int:
    """All (key, row) that fit, in the order of the buckets, which is nobody's business outside. How many."""
    n = 0
    for bucket in range(len(words) >> 3):
        for i in range(WAYS):
            spot = bucket * 8 + i
            row = cells[cell_of(spot)]
            if row and n < len(keys):
                keys[_U(n)] = words[_U(spot)]
                rows[_U(n)] = row - 1
                n += 1
    return n
