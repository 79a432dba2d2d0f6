"""The steps of all update rules: one kernel a rule over unique rows and their summed gradients.

A kernel visits each row once: it reads gradient, vector and state, steps, caps the row, and asks for the lines of the
row that it will visit some rows later, so that a table larger than any cache is updated at the pace of memory, not
of its latency. Every operation is a float32 one in a fixed order (sums over a row run from its first column to its
last), so the bits are those of `reference`, whatever the order of the rows and the machine's vector width.

All kernels take `values (capacity, w)`, `state (capacity, s)`, `rows (n,)`, `grads (n, g)`, then where the rule's
columns lie: values[:, at : at + dim], state from column `state_at`, grads[:, grads_at : grads_at + dim]; then `lr`,
`keep` (1 − lr · weight decay), `grad_cap`, `row_cap` (0: none) and what is the rule's own. They return how many rows
were refused.
A row of -1 is passed over; so is one whose gradient's sum of squares is not finite, and that one is counted.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.gather import rows_ahead
from infra.embedding.machine import Int, prefetch

Floats = NDArray[np.float32]
Rows = NDArray[np.int32]

_LINE = 16  # float32 in a cache line
_REFUSED = np.float32(-1)
_U = np.uint64  # indices are unsigned: numba spends a branch on each signed one, to let -1 mean the last


@njit(cache=True, nogil=True)
def _approach(flat: Floats, width: int, at: int, count: int, rows: Rows, i: Int) -> None:
    """Fetch the columns [at, at + count) of a row that comes after the i-th."""
    later = i + rows_ahead(4 * count)
    if later >= len(rows) or rows[_U(later)] < 0:
        return
    start = np.int64(rows[_U(later)]) * width + at
    for o in range(0, count, _LINE):
        prefetch(flat, start + o)
    prefetch(flat, start + count - 1)


@njit(cache=True, nogil=True, error_model="numpy")
def _scale(grads: Floats, i: Int, grads_at: int, dim: int, cap: np.float32) -> np.float32:
    """What the i-th gradient is multiplied by to keep its L2 norm under `cap` (1 where it is), -1 where not finite."""
    square = np.float32(0.0)
    for j in range(grads_at, grads_at + dim):
        square += grads[_U(i), _U(j)] * grads[_U(i), _U(j)]
    if not np.isfinite(square):
        return _REFUSED
    norm = np.sqrt(square)
    return cap / norm if cap > 0 and norm > cap else np.float32(1)


@njit(cache=True, nogil=True, error_model="numpy")
def _cap_row(values: Floats, row: Int, at: int, dim: int, cap: float) -> None:
    """Shrink values[row, at : at + dim] to the L2 norm `cap` where it is longer (within rounding)."""
    square = 0.0
    for j in range(at, at + dim):
        square += np.float64(values[_U(row), _U(j)]) * np.float64(values[_U(row), _U(j)])
    if cap * cap < square < np.inf:
        shrink = np.float32(cap / np.sqrt(square))
        for j in range(at, at + dim):
            values[_U(row), _U(j)] *= shrink


@njit(cache=True, nogil=True)
def _power(base: float, n: Int) -> float:
    """base ** n by squaring: multiplications only, so that no mathematics library has a say in the bits."""
    result = 1.0
    while n > 0:
        if n & 1:
            result *= base
        base *= base
        n >>= 1
    return result


@njit(cache=True, nogil=True, error_model="numpy")
def sgd(
    values: Floats, state: Floats, rows: Rows, grads: Floats, at: int, dim: int, state_at: int, grads_at: int,
    lr: float, keep: float, grad_cap: float, row_cap: float,
) -> int:  # fmt: skip
    """v ← keep · v − lr · g."""
    flat, width, rate, kept = values.reshape(-1), values.shape[1], np.float32(lr), np.float32(keep)
    refused = 0
    for i in range(len(rows)):
        _approach(flat, width, at, dim, rows, i)
        row = rows[_U(i)]
        if row < 0:
            continue
        scale = _scale(grads, i, grads_at, dim, np.float32(grad_cap))
        if scale < 0:
            refused += 1
            continue
        for j in range(dim):
            g = grads[_U(i), _U(grads_at + j)] * scale
            values[_U(row), _U(at + j)] = values[_U(row), _U(at + j)] * kept - rate * g
        if row_cap > 0:
            _cap_row(values, row, at, dim, row_cap)
    return refused


@njit(cache=True, nogil=True, error_model="numpy")
def momentum(
    values: Floats, state: Floats, rows: Rows, grads: Floats, at: int, dim: int, state_at: int, grads_at: int,
    lr: float, keep: float, grad_cap: float, row_cap: float, mu: float,
) -> int:  # fmt: skip
    """m ← mu · m + g; v ← keep · v − lr · m."""
    flat, width, rate, kept = values.reshape(-1), values.shape[1], np.float32(lr), np.float32(keep)
    flat_state, state_width, decay = state.reshape(-1), state.shape[1], np.float32(mu)
    refused = 0
    for i in range(len(rows)):
        _approach(flat, width, at, dim, rows, i)
        _approach(flat_state, state_width, state_at, dim, rows, i)
        row = rows[_U(i)]
        if row < 0:
            continue
        scale = _scale(grads, i, grads_at, dim, np.float32(grad_cap))
        if scale < 0:
            refused += 1
            continue
        for j in range(dim):
            m = decay * state[_U(row), _U(state_at + j)] + grads[_U(i), _U(grads_at + j)] * scale
            state[_U(row), _U(state_at + j)] = m
            values[_U(row), _U(at + j)] = values[_U(row), _U(at + j)] * kept - rate * m
        if row_cap > 0:
            _cap_row(values, row, at, dim, row_cap)
    return refused


@njit(cache=True, nogil=True, error_model="numpy")
def adagrad(
    values: Floats, state: Floats, rows: Rows, grads: Floats, at: int, dim: int, state_at: int, grads_at: int,
    lr: float, keep: float, grad_cap: float, row_cap: float, epsilon: float,
) -> int:  # fmt: skip
    """s ← s + g²; v ← keep · v − lr · g / (√s + ε), each column with a sum of its own."""
    flat, width, rate, kept = values.reshape(-1), values.shape[1], np.float32(lr), np.float32(keep)
    flat_state, state_width, eps = state.reshape(-1), state.shape[1], np.float32(epsilon)
    refused = 0
    for i in range(len(rows)):
        _approach(flat, width, at, dim, rows, i)
        _approach(flat_state, state_width, state_at, dim, rows, i)
        row = rows[_U(i)]
        if row < 0:
            continue
        scale = _scale(grads, i, grads_at, dim, np.float32(grad_cap))
        if scale < 0:
            refused += 1
            continue
        for j in range(dim):
            g = grads[_U(i), _U(grads_at + j)] * scale
            s = state[_U(row), _U(state_at + j)] + g * g
            state[_U(row), _U(state_at + j)] = s
            values[_U(row), _U(at + j)] = values[_U(row), _U(at + j)] * kept - rate * g / (np.sqrt(s) + eps)
        if row_cap > 0:
            _cap_row(values, row, at, dim, row_cap)
    return refused


@njit(cache=True, nogil=True, error_model="numpy")
def rowwise_adagrad(
    values: Floats, state: Floats, rows: Rows, grads: Floats, at: int, dim: int, state_at: int, grads_at: int,
    lr: float, keep: float, grad_cap: float, row_cap: float, epsilon: float,
) -> int:  # fmt: skip
    """s ← s + mean(g²); v ← keep · v − lr / (√s + ε) · g, one sum s a row."""
    flat, width, rate, kept = values.reshape(-1), values.shape[1], np.float32(lr), np.float32(keep)
    flat_state, state_width, eps = state.reshape(-1), state.shape[1], np.float32(epsilon)
    refused = 0
    for i in range(len(rows)):
        _approach(flat, width, at, dim, rows, i)
        _approach(flat_state, state_width, state_at, 1, rows, i)
        row = rows[_U(i)]
        if row < 0:
            continue
        square = np.float32(0.0)
        for j in range(grads_at, grads_at + dim):
            square += grads[_U(i), _U(j)] * grads[_U(i), _U(j)]
        if not np.isfinite(square):
            refused += 1
            continue
        scale = np.float32(1)
        if grad_cap > 0 and np.sqrt(square) > np.float32(grad_cap):
            scale, square = np.float32(grad_cap) / np.sqrt(square), np.float32(0.0)
            for j in range(grads_at, grads_at + dim):
                square += (grads[_U(i), _U(j)] * scale) * (grads[_U(i), _U(j)] * scale)
        s = state[_U(row), _U(state_at)] + square / np.float32(dim)
        state[_U(row), _U(state_at)] = s
        step = rate / (np.sqrt(s) + eps)
        for j in range(dim):
            g = grads[_U(i), _U(grads_at + j)] * scale
            values[_U(row), _U(at + j)] = values[_U(row), _U(at + j)] * kept - step * g
        if row_cap > 0:
            _cap_row(values, row, at, dim, row_cap)
    return refused


@njit(cache=True, nogil=True, error_model="numpy")
def adam(
    values: Floats, state: Floats, rows: Rows, grads: Floats, at: int, dim: int, state_at: int, grads_at: int,
    lr: float, keep: float, grad_cap: float, row_cap: float, beta1: float, beta2: float, epsilon: float,
) -> int:  # fmt: skip
    """Adam with the row's own step count t; state: t, then m (dim), then v (dim)."""
    flat, width, rate, kept = values.reshape(-1), values.shape[1], np.float32(lr), np.float32(keep)
    flat_state, state_width, eps = state.reshape(-1), state.shape[1], np.float32(epsilon)
    b1, b2, rest1, rest2 = np.float32(beta1), np.float32(beta2), np.float32(1 - beta1), np.float32(1 - beta2)
    m_at, v_at = state_at + 1, state_at + 1 + dim
    refused = 0
    for i in range(len(rows)):
        _approach(flat, width, at, dim, rows, i)
        _approach(flat_state, state_width, state_at, 2 * dim + 1, rows, i)
        row = rows[_U(i)]
        if row < 0:
            continue
        scale = _scale(grads, i, grads_at, dim, np.float32(grad_cap))
        if scale < 0:
            refused += 1
            continue
        t = state[_U(row), _U(state_at)] + np.float32(1)  # counts to 2^24 and stands still: by then both factors are 1
        state[_U(row), _U(state_at)] = t
        full1 = np.float32(1 - _power(beta1, np.int64(t)))
        full2 = np.float32(1 - _power(beta2, np.int64(t)))
        for j in range(dim):
            g = grads[_U(i), _U(grads_at + j)] * scale
            m = b1 * state[_U(row), _U(m_at + j)] + rest1 * g
            v = b2 * state[_U(row), _U(v_at + j)] + rest2 * (g * g)
            state[_U(row), _U(m_at + j)], state[_U(row), _U(v_at + j)] = m, v
            step = rate * (m / full1) / (np.sqrt(v / full2) + eps)
            values[_U(row), _U(at + j)] = values[_U(row), _U(at + j)] * kept - step
        if row_cap > 0:
            _cap_row(values, row, at, dim, row_cap)
    return refused


@njit(cache=True, nogil=True, error_model="numpy")
def ftrl(
    values: Floats, state: Floats, rows: Rows, grads: Floats, at: int, dim: int, state_at: int, grads_at: int,
    lr: float, keep: float, grad_cap: float, row_cap: float, beta: float, l1: float, l2: float,
) -> int:  # fmt: skip
    """FTRL-proximal a column; state: z (dim), then n (dim). `keep` is not read: l2 is this rule's decay."""
    flat, width, alpha = values.reshape(-1), values.shape[1], np.float32(lr)
    flat_state, state_width = state.reshape(-1), state.shape[1]
    b, lambda1, lambda2 = np.float32(beta), np.float32(l1), np.float32(l2)
    n_at = state_at + dim
    refused = 0
    for i in range(len(rows)):
        _approach(flat, width, at, dim, rows, i)
        _approach(flat_state, state_width, state_at, 2 * dim, rows, i)
        row = rows[_U(i)]
        if row < 0:
            continue
        scale = _scale(grads, i, grads_at, dim, np.float32(grad_cap))
        if scale < 0:
            refused += 1
            continue
        for j in range(dim):
            g = grads[_U(i), _U(grads_at + j)] * scale
            old = state[_U(row), _U(n_at + j)]
            n = old + g * g
            sigma = (np.sqrt(n) - np.sqrt(old)) / alpha
            z = state[_U(row), _U(state_at + j)] + g - sigma * values[_U(row), _U(at + j)]
            state[_U(row), _U(state_at + j)], state[_U(row), _U(n_at + j)] = z, n
            pull = abs(z) - lambda1
            w = np.copysign(pull, -z) / ((b + np.sqrt(n)) / alpha + lambda2)
            values[_U(row), _U(at + j)] = np.float32(0) if pull <= 0 else w
        if row_cap > 0:
            _cap_row(values, row, at, dim, row_cap)
    return refused
