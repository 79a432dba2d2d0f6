"""Half precision, read in kernels: numba has no float16 on a CPU, so rows are kept as their 16 bits.

Writing rounds to nearest even in NumPy; what is too large for float16 becomes its largest finite number, for one
exploded row must not turn a score into infinity. NaN stays NaN: whoever publishes versions refuses it.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.gather import rows_ahead
from infra.embedding.index.buckets import find_rows
from infra.embedding.machine import float_of_bits, prefetch

HALF_MAX = 65504.0
_U = np.uint64


def to_half(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest float16."""
    return np.minimum(np.maximum(values, -HALF_MAX), HALF_MAX).astype(np.float16).view(np.uint16)


@njit(cache=True, nogil=True)
def _widen(h: np.uint16) -> np.float32:
    """float16 → float32, exact. No denormal arithmetic, which a caller may have switched off, and no branch."""
    bits = np.uint32(h)
    exponent = bits & np.uint32(0x7C00)
    # 127 − 15 is added to the exponent, twice for infinity and NaN, so that 31 becomes 255.
    bias = np.uint32(112 << 23) if exponent != np.uint32(0x7C00) else np.uint32(224 << 23)
    normal = float_of_bits(np.uint32(((bits & np.uint32(0x7FFF)) << np.uint32(13)) + bias))
    tiny = np.float32(np.int32(bits & np.uint32(0x03FF))) * np.float32(2.0**-24)  # zero and subnormals
    x = normal if exponent != np.uint32(0) else tiny
    return -x if bits & np.uint32(0x8000) else x


@njit(cache=True, nogil=True)
def gather_half(heap: NDArray[np.uint16], rows: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """out[i] = float32 of heap[rows[i]], zeros where the row is -1."""
    dim = heap.shape[1]
    flat = heap.reshape(-1)
    ahead = rows_ahead(2 * dim)
    for i in range(len(rows)):
        if i + ahead < len(rows) and rows[_U(i + ahead)] >= 0:
            prefetch(flat, np.int64(rows[_U(i + ahead)]) * dim)
        row = rows[_U(i)]
        if row < 0:
            for j in range(dim):
                out[_U(i), _U(j)] = 0.0
        else:
            for j in range(dim):
                out[_U(i), _U(j)] = _widen(heap[_U(row), _U(j)])


@njit(cache=True, nogil=True)
def look_up_half(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    heap: NDArray[np.uint16],
    out: NDArray[np.float32],
) -> None:
    """out[i] = float32 of the row of keys[i], zeros where it is absent: a find and a gather in one call."""
    rows = np.empty(len(keys), np.int32)
    find_rows(words, cells, head, keys, rows)
    gather_half(heap, rows, out)
