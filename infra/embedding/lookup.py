"""Find and gather in one pass: a block of keys is hashed and its buckets fetched, then its rows found, then copied.

The buckets of the next block are on their way while the rows of this one are copied, and each row while those before
it are, so that memory always has something to do, and what is fetched is read while it is in the first cache.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.gather import AHEAD, copy_row, fetch_row
from infra.embedding.index.bucket import row_at
from infra.embedding.index.buckets import BLOCK, approach, block
from infra.embedding.life.policy import NEVER
from infra.embedding.machine import Int, prefetch

_U = np.uint64


@njit(cache=True, nogil=True)
def _hide_expired(last_seen: NDArray[np.int32], horizon: int, rows: NDArray[np.int32], n: int) -> None:
    for i in range(n):
        if rows[_U(i)] >= 0:
            prefetch(last_seen, np.int64(rows[_U(i)]))
    for i in range(n):
        if rows[_U(i)] >= 0 and last_seen[_U(rows[_U(i)])] < horizon:
            rows[_U(i)] = -1


@njit(cache=True, nogil=True)
def look_up(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    values: NDArray[np.float32],
    last_seen: NDArray[np.int32],
    horizon: int,
    out: NDArray[np.float32],
    found: NDArray[np.bool_],
) -> int:
    """out[i] = vector (dim,) of keys[i] and found[i] = True, or zeros and False; how many are absent.

    A row last seen before `horizon` is absent; NEVER as the horizon leaves `last_seen` unread.
    """
    near, far = block()
    rows = np.full(BLOCK + AHEAD, -1, np.int32)
    flat, target, dim = values.reshape(-1), out.reshape(-1), values.shape[1]
    absent = 0
    lo: Int = 0
    hi = approach(words, head, keys, lo, near, far)
    while lo < len(keys):
        n = hi - lo
        for i in range(n):
            rows[_U(i)] = row_at(words, cells, near[_U(i)], far[_U(i)], keys[_U(lo + i)])
        if horizon != NEVER:
            _hide_expired(last_seen, horizon, rows, n)
        for i in range(min(n, AHEAD)):
            fetch_row(flat, rows[_U(i)], dim)
        end = approach(words, head, keys, hi, near, far)
        for i in range(n):
            fetch_row(flat, rows[_U(i + AHEAD)], dim)  # behind the end are -1, or rows of the block before
            row = rows[_U(i)]
            found[_U(lo + i)] = row >= 0
            if row >= 0:
                copy_row(flat, row, dim, target, lo + i)
            else:
                absent += 1
                for j in range(dim):
                    target[_U((lo + i) * dim + j)] = 0.0
        lo, hi = hi, end
    return absent
