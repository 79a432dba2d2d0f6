"""Update rules of embedding rows: fused kernels over unique rows with summed gradients.

Row-wise Adagrad (Duchi et al. 2011, eq. 1, with one accumulator a row as in FBGEMM and TorchRec): for the summed
gradient g (d,) of a row with accumulator s,

    s ← s + mean(g²)        v ← v − lr · g / (√s + ε)

The accumulator starts at the slot's `adagrad_init`, which bounds the first step. A row must appear once: two entries
for one row would make the result depend on their order. A row whose gradient is not finite is left as it was and
counted: one broken example must not reach serving through the rows that it shares with others.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

EPSILON = 1e-8


@njit(cache=True, nogil=True)
def rowwise_adagrad(
    values: NDArray[np.float32],
    state: NDArray[np.float32],
    rows: NDArray[np.int32],
    grads: NDArray[np.float32],
    lr: float,
) -> int:
    """Apply one step in place. values (capacity, d), state (capacity, ≥ 1), rows (n,) unique, grads (n, d) summed.

    Returns how many rows were refused because their gradient was not finite.
    """
    dim = values.shape[1]
    rate = np.float32(lr)
    refused = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        if row < 0:
            continue
        square = np.float32(0.0)
        for j in range(dim):
            square += grads[i, j] * grads[i, j]
        if not np.isfinite(square):
            refused += 1
            continue
        s = state[row, 0] + square / np.float32(dim)
        state[row, 0] = s
        step = rate / (np.sqrt(s) + np.float32(EPSILON))
        for j in range(dim):
            values[row, j] -= step * grads[i, j]
    return refused
