"""Reading rows in batches, and the two kernels that turn repeated keys into unique ones and sum their gradients.

All of them run in input order on one thread, so equal inputs give equal bits.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.base import as_keys, as_rows
from infra.embedding.initial import mix64
from infra.embedding.machine import Int, copy_line, leaf, prefetch, settle, stream_line

MOST_AHEAD = 64  # rows between a prefetch and its use, where rows are short
_LINES_AHEAD = 128  # cache lines between them: 8 KB, where rows are long
_STREAM_BYTES = 24 << 20  # an output from here on is written past the caches, which would not keep it
_LINE = 16  # float32 in a cache line
_LINE_BYTES = 64
_U = np.uint64


@leaf
def rows_ahead(row_bytes: Int) -> Int:
    """How many rows later one is used whose prefetch begins now.

    Rows of 32 floats took 18 ns at 8 rows, 7 at 64 (8 M rows, random); of 256 they take longest at 64, least at 8.
    """
    lines = (row_bytes + _LINE_BYTES - 1) // _LINE_BYTES
    return max(8, min(MOST_AHEAD, _LINES_AHEAD // max(lines, 1)))


@leaf
def fetch_row(flat: NDArray[np.float32], row: Int, dim: Int) -> None:
    """Prefetch every cache line of a row of `dim`; nothing where the row is -1."""
    if row >= 0:
        start = np.int64(row) * dim
        prefetch(flat, start)
        prefetch(flat, start + dim - 1)
        at = _LINE
        while at + _LINE < dim:
            prefetch(flat, start + at)
            at += _LINE


@njit(cache=True, nogil=True)
def streams(out: NDArray[np.float32]) -> bool:
    """Whether rows of `out` (n, dim) are written past the caches: it is large, and rows are whole lines, aligned.

    Else each line of `out` is first read, for nothing. To gather rows of 32 and then read them all took 9.8 ns a row
    and not 11.8 with 32 MB, 8.9 and not 9.9 with 16 MB, but 8.7 and not 7.8 with 8 MB, which the caches keep.
    """
    return out.size * 4 >= _STREAM_BYTES and out.shape[1] % _LINE == 0 and out.ctypes.data % 16 == 0


@leaf
def copy_row(flat: NDArray[np.float32], row: Int, dim: Int, out: NDArray[np.float32], i: Int, streaming: bool) -> None:
    """Row i of `out` becomes `row` of `flat`; both are flat, and rows of `dim`.

    `streaming` is a constant where this is called, so that it costs no look a row; `settle` follows it.
    """
    source, target = np.int64(row) * dim, np.int64(i) * dim
    at = 0
    if streaming:
        while at < dim:
            stream_line(out, target + at, flat, source + at)
            at += _LINE
        return
    while at + _LINE <= dim:
        copy_line(out, target + at, flat, source + at)
        at += _LINE
    while at < dim:
        out[_U(target + at)] = flat[_U(source + at)]
        at += 1


@leaf
def _gather_each(
    flat: NDArray[np.float32], high: int, rows: NDArray[np.int32], dim: Int, out: NDArray[np.float32], streaming: bool
) -> bool:
    ahead = rows_ahead(4 * dim)
    for i in range(len(rows)):
        if i + ahead < len(rows):
            fetch_row(flat, rows[_U(i + ahead)], dim)
        row = rows[_U(i)]
        if row >= high or row < -1:
            return False
        if row < 0:
            for j in range(dim):
                out[_U(i * dim + j)] = 0.0
        else:
            copy_row(flat, row, dim, out, i, streaming)
    return True


@njit(cache=True, nogil=True)
def _gather(values: NDArray[np.float32], high: int, rows: NDArray[np.int32], out: NDArray[np.float32]) -> bool:
    flat, target, dim = values.reshape(-1), out.reshape(-1), values.shape[1]
    if not streams(out):
        return _gather_each(flat, high, rows, dim, target, False)
    known = _gather_each(flat, high, rows, dim, target, True)
    settle()
    return known


@leaf
def _copy_each(
    flat: NDArray[np.float32], rows: NDArray[np.int32], dim: Int, out: NDArray[np.float32], streaming: bool
) -> None:
    ahead = rows_ahead(4 * dim)
    for i in range(min(ahead, len(rows))):
        fetch_row(flat, rows[_U(i)], dim)
    for i in range(len(rows)):
        if i + ahead < len(rows):
            fetch_row(flat, rows[_U(i + ahead)], dim)
        copy_row(flat, rows[_U(i)], dim, out, i, streaming)


@njit(cache=True, nogil=True)
def copy_rows(values: NDArray[np.float32], rows: NDArray[np.int32], out: NDArray[np.float32], streaming: bool) -> None:
    """out[i] = values[rows[i]] for rows that are all there; past the caches where `streaming`."""
    flat, target, dim = values.reshape(-1), out.reshape(-1), values.shape[1]
    if streaming:
        _copy_each(flat, rows, dim, target, True)
        settle()
    else:
        _copy_each(flat, rows, dim, target, False)


def gather_rows(
    values: NDArray[np.float32], high: int, rows: NDArray[np.int32], out: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """values[rows] with zeros where a row is -1; ValueError where it is neither that nor in [0, high)."""
    result = checked_out(out, len(rows), values.shape[1])
    if not _gather(values, high, rows, result):
        raise ValueError(f"row numbers from {rows.min()} to {rows.max()}; this table gave out [0, {high})")
    return result


def checked_out(out: NDArray[np.float32] | None, n: int, dim: int) -> NDArray[np.float32]:
    """`out` if it is what a kernel may write to, or a new array. Raises ValueError."""
    if out is None:
        return np.empty((n, dim), np.float32)
    if out.shape != (n, dim) or out.dtype != np.float32 or not out.flags.carray:
        raise ValueError(f"out is {out.dtype}{out.shape}; it must be contiguous float32({n}, {dim})")
    return out


@njit(cache=True, nogil=True)
def _unique(keys: NDArray[np.int64], unique: NDArray[np.int64], inverse: NDArray[np.int32]) -> int:
    n = len(keys)
    size = 8
    while size < 2 * n:
        size *= 2
    mask = size - 1
    salt = np.uint64(n)  # of the batch itself, so that no set of keys is bad in every batch
    for i in range(n):
        salt += np.uint64(keys[i])
    salt = mix64(salt)
    table = np.zeros(size, np.int32)
    m = 0
    for i in range(n):
        key = keys[i]
        at = np.int64(mix64(np.uint64(key) ^ salt)) & mask
        while table[_U(at)] != 0 and unique[_U(table[_U(at)] - 1)] != key:
            at = (at + 1) & mask
        if table[_U(at)] == 0:
            unique[_U(m)] = key
            m += 1
            table[_U(at)] = m
        inverse[_U(i)] = table[_U(at)] - 1
    return m


def unique_inverse(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Distinct keys (m,) in the order of their first appearance, and inverse (n,): unique[inverse] = keys."""
    keys = as_keys(keys)
    unique, inverse = np.empty(len(keys), np.int64), np.empty(len(keys), np.int32)
    m = _unique(keys, unique, inverse)
    return unique[:m].copy(), inverse


@njit(cache=True, nogil=True)
def _group_sum(grads: NDArray[np.float32], inverse: NDArray[np.int32], out: NDArray[np.float32]) -> bool:
    for i in range(len(inverse)):
        g = inverse[_U(i)]
        if g < 0 or g >= len(out):
            return False
        for j in range(out.shape[1]):
            out[_U(g), _U(j)] += grads[_U(i), _U(j)]
    return True


def group_sum(grads: NDArray[np.float32], inverse: NDArray[np.int32], m: int) -> NDArray[np.float32]:
    """Sums (m, d) of the rows of grads (n, d) by group, added in input order. Raises ValueError on a group ≥ m."""
    inverse = as_rows(inverse)
    if grads.ndim != 2 or len(grads) != len(inverse):
        raise ValueError(f"grads {grads.shape} and inverse {inverse.shape} do not match")
    if grads.dtype != np.float32 or not grads.flags.carray:
        grads = np.array(grads, dtype=np.float32, order="C")
    out = np.zeros((m, grads.shape[1]), np.float32)
    if not _group_sum(grads, inverse, out):
        raise ValueError(f"groups from {inverse.min()} to {inverse.max()}; there are {m}")
    return out
