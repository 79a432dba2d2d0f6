"""Find and gather in one call, a chunk of keys after the other: rows are found, then copied.

Each row is on its way while those before it are copied. To find the next keys meanwhile (blocks of 32 to 256) was tried
and took 1.4 to 1.8 times as long: what a core can have under way is limited, and both want all of it.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.gather import MOST_AHEAD, copy_row, fetch_row, rows_ahead, streams
from infra.embedding.index.buckets import find_rows
from infra.embedding.life.policy import NEVER
from infra.embedding.machine import Int, leaf, prefetch, settle

CHUNK = 4_096  # keys whose rows are found before the first of them is copied; 1,024 took a seventh longer

_U = np.uint64


@njit(cache=True, nogil=True)
def _hide_expired(last_seen: NDArray[np.int32], horizon: int, rows: NDArray[np.int32], n: int) -> None:
    for i in range(n):
        if rows[_U(i)] >= 0:
            prefetch(last_seen, np.int64(rows[_U(i)]))
    for i in range(n):
        if rows[_U(i)] >= 0 and last_seen[_U(rows[_U(i)])] < horizon:
            rows[_U(i)] = -1


@leaf
def _copy_found(
    flat: NDArray[np.float32],
    rows: NDArray[np.int32],
    n: Int,
    dim: Int,
    out: NDArray[np.float32],
    found: NDArray[np.bool_],
    first: Int,
    streaming: bool,
) -> Int:
    """The first n rows into row `first` of `out` and those after it; how many are absent.

    Behind the n-th are MOST_AHEAD more in `rows`, -1 or rows of the chunk before.
    """
    ahead, absent = rows_ahead(4 * dim), 0
    for i in range(min(n, ahead)):
        fetch_row(flat, rows[_U(i)], dim)
    for i in range(n):
        fetch_row(flat, rows[_U(i + ahead)], dim)
        row = rows[_U(i)]
        found[_U(first + i)] = row >= 0
        if row >= 0:
            copy_row(flat, row, dim, out, first + i, streaming)
        else:
            absent += 1
            for j in range(dim):
                out[_U((first + i) * dim + j)] = 0.0
    return absent


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
    rows = np.full(CHUNK + MOST_AHEAD, -1, np.int32)
    flat, target, dim = values.reshape(-1), out.reshape(-1), values.shape[1]
    streaming = streams(out)
    absent = 0
    first: Int = 0
    while first < len(keys):
        last = min(first + CHUNK, len(keys))
        n = last - first
        find_rows(words, cells, head, keys[first:last], rows)
        if horizon != NEVER:
            _hide_expired(last_seen, horizon, rows, n)
        if streaming:
            absent += _copy_found(flat, rows, n, dim, target, found, first, True)
        else:
            absent += _copy_found(flat, rows, n, dim, target, found, first, False)
        first = last
    if streaming:
        settle()
    return absent
