"""The update rules again, in plain NumPy, each written from its paper: what the kernels are held to, bit for bit.

`values (capacity, dim)` and `state (capacity, state_dim)` here are the rule's own columns, as views of the table;
`rows` and `grads` are as in `Rule.apply`. Each function steps in place and returns how many rows were refused. Sums
over a row run from its first column to its last in float32, as the kernels do; NumPy's `sum` adds in another order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.rules.rule import Adagrad, Adam, Ftrl, Momentum, RowwiseAdagrad, Rule, Sgd

Floats = NDArray[np.float32]
Rows = NDArray[np.int32]
f32 = np.float32


def sgd(rule: Sgd, values: Floats, state: Floats, rows: Rows, grads: Floats) -> int:
    """Robbins and Monro 1951: θ ← θ − η g."""
    rows, g, refused = usable(rows, grads, rule.grad_cap)
    move(rule, values, rows, f32(rule.lr) * g)
    return refused


def momentum(rule: Momentum, values: Floats, state: Floats, rows: Rows, grads: Floats) -> int:
    """Polyak 1964: the velocity v ← μ v + g, then θ ← θ − η v."""
    rows, g, refused = usable(rows, grads, rule.grad_cap)
    state[rows] = f32(rule.momentum) * state[rows] + g
    move(rule, values, rows, f32(rule.lr) * state[rows])
    return refused


def adagrad(rule: Adagrad, values: Floats, state: Floats, rows: Rows, grads: Floats) -> int:
    """Duchi, Hazan and Singer 2011, fig. 1: G ← G + g², then θ ← θ − η g / (√G + δ): δ stands outside the root."""
    rows, g, refused = usable(rows, grads, rule.grad_cap)
    state[rows] += g * g
    move(rule, values, rows, f32(rule.lr) * g / (np.sqrt(state[rows]) + f32(rule.epsilon)))
    return refused


def rowwise_adagrad(rule: RowwiseAdagrad, values: Floats, state: Floats, rows: Rows, grads: Floats) -> int:
    """Mudigere et al. 2022: Adagrad whose G is one number a row, the mean of g² over the row."""
    rows, g, refused = usable(rows, grads, rule.grad_cap)
    state[rows, 0] += squares(g) / f32(grads.shape[1])
    step = f32(rule.lr) / (np.sqrt(state[rows, 0]) + f32(rule.epsilon))
    move(rule, values, rows, step[:, None] * g)
    return refused


def adam(rule: Adam, values: Floats, state: Floats, rows: Rows, grads: Floats) -> int:
    """Kingma and Ba 2015, algorithm 1, t being the row's own. State: t, then m, then v."""
    rows, g, refused = usable(rows, grads, rule.grad_cap)
    dim = grads.shape[1]
    count, first, second = state[:, 0], state[:, 1 : 1 + dim], state[:, 1 + dim :]
    b1, b2 = rule.beta1, rule.beta2
    count[rows] += f32(1)
    t = count[rows].astype(np.float64)[:, None]
    first[rows] = f32(b1) * first[rows] + f32(1 - b1) * g
    second[rows] = f32(b2) * second[rows] + f32(1 - b2) * (g * g)
    m_hat = first[rows] / (1 - np.power(b1, t)).astype(np.float32)
    v_hat = second[rows] / (1 - np.power(b2, t)).astype(np.float32)
    move(rule, values, rows, f32(rule.lr) * m_hat / (np.sqrt(v_hat) + f32(rule.epsilon)))
    return refused


def ftrl(rule: Ftrl, values: Floats, state: Floats, rows: Rows, grads: Floats) -> int:
    """McMahan et al. 2013, algorithm 1, with w kept beside z and n, not made at each reading. State: z, n."""
    rows, g, refused = usable(rows, grads, rule.grad_cap)
    dim = grads.shape[1]
    linear, total = state[:, :dim], state[:, dim:]
    alpha, beta, lambda1, lambda2 = f32(rule.lr), f32(rule.beta), f32(rule.l1), f32(rule.l2)
    n = total[rows] + g * g
    sigma = (np.sqrt(n) - np.sqrt(total[rows])) / alpha
    z = linear[rows] + g - sigma * values[rows]
    linear[rows], total[rows] = z, n
    w = -(z - np.sign(z) * lambda1) / ((beta + np.sqrt(n)) / alpha + lambda2)
    values[rows] = np.where(abs(z) <= lambda1, f32(0), w)
    cap_rows(values, rows, rule.row_norm_cap)
    return refused


REFERENCES: dict[type[Rule], Callable[..., int]] = {
    Sgd: sgd,
    Momentum: momentum,
    Adagrad: adagrad,
    RowwiseAdagrad: rowwise_adagrad,
    Adam: adam,
    Ftrl: ftrl,
}


def squares(g: Floats) -> Floats:
    """Sums of squares (n,) of g (n, dim), added column by column."""
    total = np.zeros(len(g), np.float32)
    for column in g.T:
        total = total + column * column
    return total


def usable(rows: Rows, grads: Floats, cap: float) -> tuple[Rows, Floats, int]:
    """Rows that are named and whose gradients are finite, these gradients capped, and how many were not finite."""
    named = rows >= 0
    finite = np.isfinite(squares(grads))
    rows, g = rows[named & finite], grads[named & finite]
    if cap:
        norm = np.sqrt(squares(g))
        long = norm > f32(cap)
        g[long] *= f32(cap) / norm[long, None]
    return rows, g, int((named & ~finite).sum())


def move(
    rule: Sgd | Momentum | Adagrad | RowwiseAdagrad | Adam, values: Floats, rows: Rows, step: NDArray[Any]
) -> None:
    """θ ← (1 − η λ) θ − step (Loshchilov and Hutter 2019, algorithm 2, line 12), then the row cap."""
    values[rows] = values[rows] * f32(1 - rule.lr * rule.weight_decay) - step
    cap_rows(values, rows, rule.row_norm_cap)


def cap_rows(values: Floats, rows: Rows, cap: float) -> None:
    """Rows longer than `cap` are scaled down to it; one that is not finite stays as it is, to be seen."""
    if not cap:
        return
    square = np.zeros(len(rows))
    for column in values[rows].astype(np.float64).T:
        square = square + column * column
    long = (square > cap * cap) & np.isfinite(square)
    values[rows[long]] *= (cap / np.sqrt(square[long])).astype(np.float32)[:, None]
