"""The two passes of an assign: touch the keys that have a row, make rows for those that get one.

In a table whose policy is plain, `insert` alone does both, and `insert_and_copy` a look-up besides. Arrays of length 0
stand for what a policy does not keep.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.gather import copy_rows, streams
from infra.embedding.index import buckets as bk
from infra.embedding.index.buckets import find_rows
from infra.embedding.initial import write_initial
from infra.embedding.machine import Int, leaf, prefetch

DONE, GROW, FULL = 0, 1, -1  # why an insert stopped
CHUNK = 4_096  # keys that get their rows before the first of them is copied
CHUNK_BITS = 10  # rows whose `last_seen` share a lower bound: 1,024, 4 KB
_MOST = (1 << 32) - 1  # a frequency stays there
_U = np.uint64


@njit(cache=True, nogil=True)
def insert(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    free: NDArray[np.int32],
    heap: NDArray[np.int64],
    values: NDArray[np.float32],
    state: NDArray[np.float32],
    last_seen: NDArray[np.int32],
    row_keys: NDArray[np.int64],
    bounds: NDArray[np.int32],
    keys: NDArray[np.int64],
    rows: NDArray[np.int32],
    start: Int,
    horizon: int,
    tick: int,
    base: int,
    units: NDArray[np.float64],
    state_init: NDArray[np.float32],
) -> tuple[Int, int, int]:
    """Rows of keys[start:], made where absent.

    Returns how far it came and why not further: DONE; GROW, a larger index is needed first; FULL, no row is left. And
    how many rows began anew in place, because they were last seen before `horizon` and their keys returned.
    """
    sees = len(last_seen) > 0
    near, far = bk.block()
    returned = 0
    lo = start
    while lo < len(keys):
        hi = bk.approach(words, head, keys, lo, near, far)
        for i in range(lo, hi):
            rows[_U(i)] = bk.row_at(words, cells, near[_U(i - lo)], far[_U(i - lo)], keys[_U(i)])
            if rows[_U(i)] < 0:
                bk.fetch_others(words, cells, head, near[_U(i - lo)], far[_U(i - lo)])
            elif sees:
                prefetch(last_seen, np.int64(rows[_U(i)]))
        made = 0
        for i in range(lo, hi):
            row, key = np.int64(rows[_U(i)]), keys[_U(i)]
            if row >= 0 and not sees:
                continue
            if row >= 0 and last_seen[_U(row)] >= horizon:
                last_seen[_U(row)] = max(last_seen[_U(row)], np.int32(tick))
                continue
            if row < 0:
                a, b = near[_U(i - lo)], far[_U(i - lo)]
                if made:
                    rows[_U(i)] = bk.row_at(words, cells, a, b, key)
                    if rows[_U(i)] >= 0:  # it came before in this very block
                        continue
                reused = heap[1] > 0
                row = np.int64(free[_U(heap[1] - 1)]) if reused else heap[0]
                if row >= len(free):
                    return i, FULL, returned
                spot = bk.make_room(words, cells, head, a, b)
                if spot < 0:
                    return i, GROW, returned
                bk.occupy(words, cells, head, spot, key, row)
                heap[1 if reused else 0] += -1 if reused else 1
                rows[_U(i)] = row
                made += 1
            else:
                returned += 1
            _begin_row(values, state, last_seen, row_keys, bounds, row, key, tick, base, units, state_init)
        lo = hi
    return len(keys), DONE, returned


@leaf
def _begin_row(
    values: NDArray[np.float32],
    state: NDArray[np.float32],
    last_seen: NDArray[np.int32],
    row_keys: NDArray[np.int64],
    bounds: NDArray[np.int32],
    row: Int,
    key: Int,
    tick: int,
    base: int,
    units: NDArray[np.float64],
    state_init: NDArray[np.float32],
) -> None:
    """A row begins: the initial vector of its key, and the initial state."""
    if len(row_keys):
        last_seen[_U(row)] = tick
        row_keys[_U(row)] = key
        chunk = _U(row) >> _U(CHUNK_BITS)
        bounds[chunk] = min(bounds[chunk], np.int32(tick))
    write_initial(base, key, units, values, row)
    for j in range(state.shape[1]):
        state[_U(row), _U(j)] = state_init[_U(j)]


@njit(cache=True, nogil=True)
def insert_and_copy(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    free: NDArray[np.int32],
    heap: NDArray[np.int64],
    values: NDArray[np.float32],
    state: NDArray[np.float32],
    last_seen: NDArray[np.int32],
    row_keys: NDArray[np.int64],
    bounds: NDArray[np.int32],
    keys: NDArray[np.int64],
    rows: NDArray[np.int32],
    out: NDArray[np.float32],
    start: Int,
    horizon: int,
    tick: int,
    base: int,
    units: NDArray[np.float64],
    state_init: NDArray[np.float32],
) -> tuple[Int, int, int]:
    """`insert`, and the vectors of the keys in `out` (n, dim), a chunk after the other.

    All keys of a chunk are found first, then their rows seen, and only those without a living row inserted.
    """
    fresh, at, made = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int32)
    returned, why, first, streaming = 0, DONE, start, streams(out)
    while first < len(keys) and why == DONE:
        last = min(first + CHUNK, len(keys))
        find_rows(words, cells, head, keys[first:last], rows[first:last])
        if len(last_seen):
            _see(last_seen, rows[first:last], horizon, tick)
        n = 0
        for i in range(first, last):
            if rows[_U(i)] < 0:
                fresh[_U(n)], at[_U(n)] = keys[_U(i)], i
                n += 1
        done, why, again = insert(
            words, cells, head, free, heap, values, state, last_seen, row_keys, bounds,
            fresh[:n], made, 0, horizon, tick, base, units, state_init,
        )  # fmt: skip
        returned += again
        for m in range(done):
            rows[at[_U(m)]] = made[_U(m)]
        last = last if done == n else at[_U(done)]
        copy_rows(values, rows[first:last], out[first:last], streaming)
        first = last
    return first, why, returned


@njit(cache=True, nogil=True)
def _see(last_seen: NDArray[np.int32], rows: NDArray[np.int32], horizon: int, tick: int) -> None:
    """Rows are seen at `tick`; rows[i] = -1 where one was last seen before `horizon`."""
    for i in range(len(rows)):
        if rows[_U(i)] >= 0:
            prefetch(last_seen, np.int64(rows[_U(i)]))
    for i in range(len(rows)):
        row = rows[_U(i)]
        if row >= 0:
            if last_seen[_U(row)] >= horizon:
                last_seen[_U(row)] = max(last_seen[_U(row)], np.int32(tick))
            else:
                rows[_U(i)] = -1


@njit(cache=True, nogil=True)
def touch(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    last_seen: NDArray[np.int32],
    frequency: NDArray[np.uint32],
    keys: NDArray[np.int64],
    occurrences: NDArray[np.int64],
    horizon: int,
    tick: int,
    rows: NDArray[np.int32],
    missing: NDArray[np.int32],
) -> int:
    """Mark the rows of present keys as seen; rows[i] = -1 and missing[m] = i for the m-th key that is absent.

    How many are. A row last seen before `horizon` is absent, whoever still finds it in the index.
    """
    sees = len(last_seen) > 0
    near, far = bk.block()
    absent = 0
    lo: Int = 0
    while lo < len(keys):
        hi = bk.approach(words, head, keys, lo, near, far)
        for i in range(lo, hi):
            rows[_U(i)] = bk.row_at(words, cells, near[_U(i - lo)], far[_U(i - lo)], keys[_U(i)])
            if sees and rows[_U(i)] >= 0:
                prefetch(last_seen, np.int64(rows[_U(i)]))
        for i in range(lo, hi):
            row = rows[_U(i)]
            if row < 0 or (sees and last_seen[_U(row)] < horizon):
                rows[_U(i)] = -1
                missing[_U(absent)] = i
                absent += 1
                continue
            if sees:
                last_seen[_U(row)] = max(last_seen[_U(row)], np.int32(tick))
            if len(frequency):
                frequency[_U(row)] = min(np.int64(frequency[_U(row)]) + occurrences[_U(i)], _MOST)
        lo = hi
    return absent


@njit(cache=True, nogil=True)
def hide_expired(last_seen: NDArray[np.int32], horizon: int, rows: NDArray[np.int32]) -> None:
    """rows[i] = -1 where the row was last seen before the horizon."""
    for i in range(len(rows)):
        if rows[_U(i)] >= 0 and last_seen[_U(rows[_U(i)])] < horizon:
            rows[_U(i)] = -1
