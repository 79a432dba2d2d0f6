"""Each update rule against its formula in NumPy."""

import numpy as np

from trainer.rules import EPSILON, rowwise_adagrad


def arrays(seed: int, capacity: int = 50, dim: int = 6, n: int = 20):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(capacity, dim)).astype(np.float32)
    state = rng.random((capacity, 1)).astype(np.float32)
    rows = rng.permutation(capacity)[:n].astype(np.int32)
    return values, state, rows, rng.normal(size=(n, dim)).astype(np.float32)


def test_rowwise_adagrad_is_its_formula():
    values, state, rows, grads = arrays(1)
    want_s = state.astype(np.float64)
    want_s[rows, 0] += (grads.astype(np.float64) ** 2).mean(1)
    want_v = values.astype(np.float64)
    want_v[rows] -= 0.1 * grads / (np.sqrt(want_s[rows]) + EPSILON)
    assert rowwise_adagrad(values, state, rows, grads, 0.1) == 0
    np.testing.assert_allclose(state, want_s, rtol=1e-5)
    np.testing.assert_allclose(values, want_v, rtol=1e-5, atol=1e-6)


def test_result_does_not_depend_on_the_order_of_the_rows():
    values, state, rows, grads = arrays(2)
    other_values, other_state = values.copy(), state.copy()
    rowwise_adagrad(values, state, rows, grads, 0.1)
    rowwise_adagrad(other_values, other_state, rows[::-1].copy(), grads[::-1].copy(), 0.1)
    assert np.array_equal(values, other_values)
    assert np.array_equal(state, other_state)


def test_gradient_that_is_not_finite_is_refused_and_counted():
    values, state, rows, grads = arrays(3)
    grads[4, 2], grads[7, 0] = np.nan, np.inf
    before = values.copy()
    assert rowwise_adagrad(values, state, rows, grads, 0.1) == 2
    assert np.array_equal(values[rows[[4, 7]]], before[rows[[4, 7]]])
    assert np.isfinite(values).all()
    assert np.isfinite(state).all()


def test_absent_row_is_skipped():
    values, state, rows, grads = arrays(4)
    before = values.copy()
    rowwise_adagrad(values, state, np.full_like(rows, -1), grads, 0.1)
    assert np.array_equal(values, before)
