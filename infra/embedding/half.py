"""Half precision, read in kernels: numba has no float16 on a CPU, so rows are kept as their 16 bits.

Writing rounds to nearest even in NumPy; what is too large for float16 becomes its largest finite number, for one
exploded row must not turn a score into infinity. NaN stays NaN: whoever publishes versions refuses it.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.machine import float_of_bits

HALF_MAX = 65504.0
_U = np.uint64


def to_half(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest float16."""
    return np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16).view(np.uint16)


@njit(cache=True, nogil=True)
def _widen(h: np.uint16) -> np.float32:
    """float16 → float32, exact, by integers alone (no denormal arithmetic, which a caller may have switched off)."""
    bits = np.uint32(h)
    sign = (bits & np.uint32(0x8000)) << np.uint32(16)
    rest = (bits & np.uint32(0x7FFF)) << np.uint32(13)
    exponent = bits & np.uint32(0x7C00)
    if exponent == np.uint32(0):  # zero and subnormals: the fraction counts units of 2⁻²⁴
        tiny = np.float32(bits & np.uint32(0x03FF)) * np.float32(2.0**-24)
        return -tiny if sign else tiny
    bias = np.uint32(112 << 23)  # 127 − 15
    if exponent == np.uint32(0x7C00):
        bias = np.uint32(224 << 23)  # infinity and NaN: 31 becomes 255
    return float_of_bits(np.uint32(sign | (rest + bias)))


@njit(cache=True, nogil=True)
def gather_half(heap: NDArray[np.uint16], rows: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """out[i] = float32 of heap[rows[i]], zeros where the row is -1."""
    dim = heap.shape[1]
    for i in range(len(rows)):
        row = rows[_U(i)]
        for j in range(dim):
            out[_U(i), _U(j)] = _widen(heap[_U(row), _U(j)]) if row >= 0 else np.float32(0)
