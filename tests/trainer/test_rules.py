"""Update rules as callers see them: what a step does, what is refused, torch's optimizers as a second opinion.

Bit for bit against the papers: test_rules_reference.py.
"""

import math
from typing import Any

import numpy as np
import pytest

from trainer.rules import EPSILON, RULES, Adagrad, Adam, Ftrl, Momentum, RowwiseAdagrad, Rule, Sgd, rowwise_adagrad


def arrays(seed: int, capacity: int = 50, dim: int = 6, n: int = 20):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(capacity, dim)).astype(np.float32)
    state = rng.random((capacity, 1)).astype(np.float32)
    rows = rng.permutation(capacity)[:n].astype(np.int32)
    return values, state, rows, rng.normal(size=(n, dim)).astype(np.float32)


def table_of(rule: Rule, rows: int, dim: int) -> tuple[Any, Any]:
    values = np.random.default_rng(9).normal(size=(rows, dim)).astype(np.float32)
    return values, np.tile(np.array(rule.state_init(dim), np.float32), (rows, 1))


def test_rowwise_adagrad_is_its_formula():
    values, state, rows, grads = arrays(1)
    want_s = state.astype(np.float64)
    want_s[rows, 0] += (grads.astype(np.float64) ** 2).mean(1)
    want_v = values.astype(np.float64)
    want_v[rows] -= 0.1 * grads / (np.sqrt(want_s[rows]) + EPSILON)
    assert rowwise_adagrad(values, state, rows, grads, 0.1) == 0
    np.testing.assert_allclose(state, want_s, rtol=1e-5)
    np.testing.assert_allclose(values, want_v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [kind(lr=0.1) for kind in RULES.values()], ids=lambda rule: rule.name)
def test_result_does_not_depend_on_the_order_of_the_rows(rule):
    _, _, rows, grads = arrays(2)
    (values, state), (other_values, other_state) = table_of(rule, 50, 6), table_of(rule, 50, 6)
    for _ in range(2):
        rule.apply(values, state, rows, grads)
        rule.apply(other_values, other_state, rows[::-1].copy(), grads[::-1].copy())
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


def test_a_long_gradient_is_shortened_and_a_long_row_too():
    rule = Sgd(lr=1.0, grad_cap=5.0, row_norm_cap=2.0)
    values, state = np.zeros((2, 2), np.float32), np.zeros((2, 0), np.float32)
    rule.apply(values, state, np.array([0, 1], np.int32), np.array([[-30, -40], [-0.6, -0.8]], np.float32))
    np.testing.assert_allclose(values, [[1.2, 1.6], [0.6, 0.8]], rtol=1e-6)  # 50 → 5 along (3, 4), then 5 → 2
    uncapped = Sgd(lr=1.0, grad_cap=5.0)
    uncapped.apply(values, state, np.array([0], np.int32), np.array([[30, 40]], np.float32))
    np.testing.assert_allclose(values[0], [1.2 - 3, 1.6 - 4], rtol=1e-6)


def test_a_row_that_comes_late_takes_the_first_step_that_an_early_one_took():
    rule = Adam(lr=0.01)
    values, state = np.zeros((2, 4), np.float32), np.zeros((2, 9), np.float32)
    one = np.ones((1, 4), np.float32)
    for _ in range(1000):
        rule.apply(values, state, np.array([0], np.int32), one)
    rule.apply(values, state, np.array([1], np.int32), one)
    np.testing.assert_allclose(values[1], -0.01, rtol=1e-5)
    assert state[:, 0].tolist() == [1000, 1]


def test_ftrl_is_the_algorithm_of_its_paper_in_python_floats():
    """Algorithm 1 of McMahan et al. 2013, one coordinate, w made from z and n before each gradient."""
    alpha, beta, l1, l2 = 0.3, 0.7, 0.4, 0.2
    grads = np.random.default_rng(4).normal(size=40)
    rule = Ftrl(lr=alpha, beta=beta, l1=l1, l2=l2)
    values, state, z, n, zeros = np.zeros((1, 1), np.float32), np.zeros((1, 2), np.float32), 0.0, 0.0, 0
    for g in grads:
        w = 0.0 if abs(z) <= l1 else -(z - math.copysign(l1, z)) / ((beta + math.sqrt(n)) / alpha + l2)
        assert values[0, 0] == pytest.approx(w, rel=1e-4, abs=1e-6)
        zeros += w == 0.0
        z += g - (math.sqrt(n + g * g) - math.sqrt(n)) / alpha * w
        n += g * g
        rule.apply(values, state, np.zeros(1, np.int32), np.array([[g]], np.float32))
    assert 1 < zeros < 40, "l1 should have made some zeros and not all"


@pytest.mark.parametrize(
    ("rule", "optimizer", "options"),
    [
        (Sgd(lr=0.1), "SGD", {"lr": 0.1}),
        (Momentum(lr=0.1, momentum=0.8), "SGD", {"lr": 0.1, "momentum": 0.8}),
        (Adagrad(lr=0.1, accumulator_init=0.3), "Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-8}),
        (Adam(lr=0.1), "AdamW", {"lr": 0.1, "weight_decay": 0.0}),
        (Adam(lr=0.1, weight_decay=0.2, beta2=0.9), "AdamW", {"lr": 0.1, "weight_decay": 0.2, "betas": (0.9, 0.9)}),
    ],
    ids=lambda x: x.name if hasattr(x, "name") else "",
)
def test_rows_touched_at_every_step_do_what_torch_does(rule, optimizer, options):
    import torch

    values, state = table_of(rule, 7, 5)
    weights = torch.nn.Parameter(torch.from_numpy(values.copy()))
    theirs = getattr(torch.optim, optimizer)([weights], **options)
    rng = np.random.default_rng(8)
    for _ in range(20):
        grads = rng.normal(size=values.shape).astype(np.float32)
        weights.grad = torch.from_numpy(grads.copy())
        theirs.step()
        rule.apply(values, state, np.arange(7, dtype=np.int32), grads)
    np.testing.assert_allclose(values, weights.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Sgd, {"lr": -0.1}), (Sgd, {"lr": math.nan}), (Adagrad, {"lr": 0.1, "grad_cap": -1}),
        (Momentum, {"lr": 0.1, "momentum": 1.0}), (Adam, {"lr": 0.1, "beta2": 1.0}), (Ftrl, {"lr": 0.0}),
        (Ftrl, {"lr": 0.1, "beta": 0.0}), (Ftrl, {"lr": 0.1, "weight_decay": 0.1}),
        (RowwiseAdagrad, {"lr": 0.1, "epsilon": 0.0}),
    ],
)  # fmt: skip
def test_settings_that_make_no_rule_are_refused(kind, options):
    with pytest.raises(ValueError, match=kind.name):
        kind(**options)


def test_arguments_that_do_not_fit_are_refused():
    rule = Adagrad(lr=0.1)
    values, state = table_of(rule, 5, 3)
    rows, grads = np.arange(5, dtype=np.int32), np.ones((5, 3), np.float32)
    fits = {"values": values, "state": state, "rows": rows, "grads": grads}
    for wrong in (
        {"grads": grads[:4]}, {"grads": grads[:, :2]}, {"grads": grads.astype(np.float64)},
        {"rows": rows + 1}, {"state": state[:, :2]}, {"state": state[:4]}, {"values": values[:, :2].T},
        {"at": 1, "dim": 3}, {"at": -1}, {"state_at": 1}, {"grads_at": 1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"row|columns"):
            rule.apply(**(fits | wrong))
    frozen = np.frombuffer(grads.tobytes(), np.float32).reshape(5, 3)
    assert rule.apply(values, state, np.arange(5), frozen) == 0


def test_each_rule_is_compiled_once():
    """Columns, strides and read-only inputs are data to a kernel, not another type to compile it for."""
    from trainer.rules import kernels

    test_arguments_that_do_not_fit_are_refused()
    rule = Adagrad(lr=1)
    values, state = table_of(rule, 9, 8)
    rule.apply(values, state, np.arange(3)[::-1], np.ones((3, 16), np.float32)[:, ::2], at=4, dim=4, lr=np.float32(0.5))
    rule.apply(values, state, np.arange(3, dtype=np.int32), np.ones((3, 8), np.float32), lr=2)
    assert len(kernels.adagrad.signatures) == 1


def test_warming_leaves_nothing_to_compile():
    from trainer.rules import kernels
    from trainer.rules.warm import warm

    warm(lambda line: None)
    for kind in RULES.values():
        assert len(getattr(kernels, kind.name.replace("-", "_")).signatures) == 1
