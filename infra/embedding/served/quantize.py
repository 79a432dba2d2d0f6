"""Served rows in 8 bits a component: int8 with one float32 scale a row, symmetric, read in kernels.

    byte  0       4   5      4 + dim   (to a multiple of 4)
          scale   q₀  q₁ …   padding                          xⱼ ≈ scale · qⱼ, scale = max|x| / 127

The scale lies in front of its row, so that a row is one fetch; the heap is read as int32 for it and as int8 for the
components. Writing rounds to nearest even in NumPy. What that costs (m = max|x| of the row, d its dimension):

- each component is off by at most m · (1/254 + 2⁻²³), so the row by at most √d/254 of its norm (float16: 2⁻¹¹);
- on uniform or normal rows of dimension 16 or 32 it is 0.4 to 0.5 % of the norm (float16: 0.02 %).

Infinity is written as the largest finite number, for one exploded row must not turn a score into infinity; it then
leaves nothing of the row's other components. A row that holds NaN reads as NaN whole: whoever publishes versions
refuses it. A row whose largest component is below 2⁻¹¹⁹ has no normal scale, and reads as zeros.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.gather import rows_ahead
from infra.embedding.index.buckets import find_rows
from infra.embedding.machine import float_of_bits, prefetch

LEVELS = 127  # −128 is not used: symmetric
SCALE_BYTES = 4
LARGEST = float(np.finfo(np.float32).max) * (1 - 2.0**-23)  # 127 · float32(LARGEST / 127) is finite, too
_U = np.uint64


def row_bytes(dim: int) -> int:
    """Bytes of a row: its scale and its components, a whole number of int32."""
    return SCALE_BYTES + -(-dim // 4) * 4


def to_int8(values: NDArray[np.float32]) -> NDArray[np.int8]:
    """Rows (n, dim) as they are stored, (n, row_bytes(dim))."""
    n, dim = values.shape
    finite = np.clip(values, -LARGEST, LARGEST).astype(np.float64)  # NaN passes
    peak = np.abs(finite).max(axis=1, initial=0.0)
    scale = (peak / LEVELS).astype(np.float32)
    scale[peak < LEVELS * np.finfo(np.float32).tiny] = 0.0
    usable = scale > 0  # neither zero nor NaN
    divisor = np.where(usable, scale, 1.0).astype(np.float64)[:, None]
    stored = np.zeros((n, row_bytes(dim)), np.int8)
    stored[:, :SCALE_BYTES] = scale[:, None].view(np.int8)
    stored[:, SCALE_BYTES : SCALE_BYTES + dim] = np.rint(np.where(usable[:, None], finite, 0.0) / divisor)
    return stored


@njit(cache=True, nogil=True)
def gather_int8(heap: NDArray[np.int8], rows: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """out[i] = float32 of the stored row heap[rows[i]], zeros where the row is -1."""
    dim, width = out.shape[1], heap.shape[1]
    flat = heap.reshape(-1)
    ahead = rows_ahead(width)
    scales = flat.view(np.int32)
    for i in range(len(rows)):
        if i + ahead < len(rows) and rows[_U(i + ahead)] >= 0:
            start = np.int64(rows[_U(i + ahead)]) * width
            prefetch(flat, start)
            prefetch(flat, start + width - 1)  # a row may begin at the end of a cache line
        row = rows[_U(i)]
        if row < 0:
            for j in range(dim):
                out[_U(i), _U(j)] = 0.0
        else:
            at = _U(row) * _U(width)
            scale = float_of_bits(np.uint32(scales[at >> _U(2)]))
            for j in range(dim):
                out[_U(i), _U(j)] = scale * np.float32(flat[at + _U(SCALE_BYTES + j)])


@njit(cache=True, nogil=True)
def look_up_int8(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    heap: NDArray[np.int8],
    out: NDArray[np.float32],
) -> None:
    """out[i] = float32 of the row of keys[i], zeros where it is absent: a find and a gather in one call."""
    rows = np.empty(len(keys), np.int32)
    find_rows(words, cells, head, keys, rows)
    gather_int8(heap, rows, out)
