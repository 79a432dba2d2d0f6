"""Every rule against its paper in NumPy, bit for bit, over ordinary and hard inputs; and rules with one bug each."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from infra.embedding import group_sum, unique_inverse
from trainer.rules import EPSILON, RULES, Adagrad, Adam, Ftrl, Momentum, RowwiseAdagrad, Rule, Sgd
from trainer.rules.reference import REFERENCES

CAPACITY = 60
SOURCES: list[Rule] = [
    Sgd(lr=0.1),
    Sgd(lr=0.1, weight_decay=0.3, grad_cap=0.7, row_norm_cap=1.5),
    Momentum(lr=0.05),
    Momentum(lr=0.05, momentum=0.5, weight_decay=0.3, grad_cap=0.7, row_norm_cap=1.5),
    Adagrad(lr=0.1),
    Adagrad(lr=0.1, accumulator_init=0.1, epsilon=1e-3, weight_decay=0.3, grad_cap=0.7, row_norm_cap=1.5),
    RowwiseAdagrad(lr=0.1),
    RowwiseAdagrad(lr=0.1, accumulator_init=0.1, epsilon=1e-3, weight_decay=0.3, grad_cap=0.7, row_norm_cap=1.5),
    Adam(lr=0.01),
    Adam(lr=0.01, beta1=0.5, beta2=0.9, epsilon=1e-3, weight_decay=0.3, grad_cap=0.7, row_norm_cap=1.5),
    Ftrl(lr=0.1),
    Ftrl(lr=0.1, beta=0.5, l1=0.2, l2=0.1, grad_cap=0.7, row_norm_cap=1.5),
]
HARD = [0.0, -0.0, 1e-45, -1e-40, 1e-30, 1e-19, 1e-8, 1.0, 1e9, 1.7e19, -1.7e19, 3e38, np.nan, np.inf, -np.inf]


def label(rule: Any) -> str:
    return f"{rule.name}{'-all' if rule.grad_cap else ''}"


class World:
    """A table whose columns a rule shares with others, and batches of unique rows with -1 among them."""

    def __init__(self, rule: Rule, seed: int, dim: int, at: int = 2, state_at: int = 1, grads_at: int = 3) -> None:
        self.rng, self.dim = np.random.default_rng(seed), dim
        self.at, self.state_at, self.grads_at = at, state_at, grads_at
        init = rule.state_init(dim)
        assert len(init) == rule.state_dim(dim)
        self.values = self.rng.normal(size=(CAPACITY, at + dim + 1)).astype(np.float32)
        self.state = self.rng.normal(size=(CAPACITY, state_at + len(init) + 2)).astype(np.float32)
        self.state[:, state_at : state_at + len(init)] = init

    def batch(self, hard: bool) -> tuple[np.ndarray, np.ndarray]:
        n = int(self.rng.integers(1, CAPACITY))
        rows = self.rng.permutation(CAPACITY)[:n].astype(np.int32)
        rows[self.rng.random(n) < 0.2] = -1
        grads = self.rng.normal(size=(n, self.grads_at + self.dim + 2)).astype(np.float32)
        if hard:
            grads *= 10.0 ** self.rng.integers(-44, 19, (n, 1)).astype(np.float32)
            spots = self.rng.random(grads.shape) < 2 / self.dim
            grads[spots] = self.rng.choice(np.array(HARD, np.float32), int(spots.sum()))
        grads[:, : self.grads_at] = np.nan  # another segment's columns: nobody may read them
        return rows, grads

    def both_step(self, rule: Rule, want: Rule, rows: np.ndarray, grads: np.ndarray) -> None:
        """Step `rule` in place and `want`'s reference on a copy; everything must be equal, its neighbours too."""
        values, state = self.values.copy(), self.state.copy()
        got = rule.apply(
            self.values, self.state, rows, grads,
            at=self.at, dim=self.dim, state_at=self.state_at, grads_at=self.grads_at,
        )  # fmt: skip
        columns = slice(self.at, self.at + self.dim)
        states = slice(self.state_at, self.state_at + want.state_dim(self.dim))
        g = grads[:, self.grads_at : self.grads_at + self.dim]
        with np.errstate(all="ignore"):
            refused = REFERENCES[type(want)](want, values[:, columns], state[:, states], rows, g)
        assert got == refused
        assert np.array_equal(self.values, values, equal_nan=True)
        assert np.array_equal(self.state, state, equal_nan=True)


def agrees_over(rule: Rule, want: Rule, hard: bool) -> None:
    for dim in (1, 2, 16, 33):
        for seed in range(4):
            world = World(rule, seed, dim)
            for _ in range(6):
                world.both_step(rule, want, *world.batch(hard))


def it_is_its_paper(rule: Rule, want: Rule) -> None:
    agrees_over(rule, want, hard=False)


def it_is_its_paper_on_hard_inputs(rule: Rule, want: Rule) -> None:
    agrees_over(rule, want, hard=True)


def rows_without_a_gradient_stay(rule: Rule, want: Rule) -> None:
    world = World(rule, 5, 8)
    for _ in range(3):
        rows, grads = world.batch(hard=False)
        others = np.setdiff1d(np.arange(CAPACITY), rows)
        values, state = world.values[others].copy(), world.state[others].copy()
        rule.apply(world.values, world.state, rows, grads, at=2, dim=8, state_at=1, grads_at=3)
        assert np.array_equal(world.values[others], values)
        assert np.array_equal(world.state[others], state)


def a_broken_gradient_is_refused_alone(rule: Rule, want: Rule) -> None:
    world = World(rule, 6, 5, at=0, state_at=0, grads_at=0)
    rows = np.arange(10, dtype=np.int32)
    grads = world.rng.normal(size=(10, 5)).astype(np.float32)
    grads[3, 4], grads[5, 0], grads[7] = np.nan, -np.inf, 3e38
    values, state = world.values.copy(), world.state.copy()
    assert rule.apply(world.values, world.state, rows, grads, dim=5) == 3
    bad = np.isin(np.arange(CAPACITY), [3, 5, 7])
    assert np.array_equal(world.values[bad], values[bad])
    assert np.array_equal(world.state[bad], state[bad])
    assert (world.values[:10][~bad[:10], :5] != values[:10][~bad[:10], :5]).all()


LAWS = [
    it_is_its_paper,
    it_is_its_paper_on_hard_inputs,
    rows_without_a_gradient_stay,
    a_broken_gradient_is_refused_alone,
]


@pytest.mark.parametrize("rule", SOURCES, ids=label)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_rule_keeps_the_law(rule: Rule, law: Callable[[Rule, Rule], None]) -> None:
    law(rule, rule)


def test_every_rule_of_the_configuration_is_held_to_a_reference() -> None:
    assert {type(rule) for rule in SOURCES} == set(RULES.values()) == set(REFERENCES)
    assert list(RULES) == ["sgd", "momentum", "adagrad", "rowwise-adagrad", "adam", "ftrl"]


# --- rules with one bug each ------------------------------------------------------------------------------------------


class AdamWithAGlobalStep(Adam):
    """A row that comes late is corrected as if its moments had been there from the start."""

    def apply(self, values: Any, state: Any, rows: Any, grads: Any, **where: Any) -> int:
        state[:, where["state_at"]] = state[:, where["state_at"]].max()
        return Adam.apply(self, values, state, rows, grads, **where)


class AdagradWithEpsilonUnderTheRoot(Adagrad):
    """√(s + ε) for √s + ε: equal but for small sums, where it is 10⁴ times the divisor."""

    def apply(self, values: Any, state: Any, rows: Any, grads: Any, **where: Any) -> int:
        before = values.copy()
        refused = Adagrad.apply(self, values, state, rows, grads, **where)
        at, dim, s_at, g_at = where["at"], where["dim"], where["state_at"], where["grads_at"]
        with np.errstate(all="ignore"):
            good = (rows >= 0) & np.isfinite((grads[:, g_at : g_at + dim] ** 2).sum(1))
            s = state[rows[good], s_at : s_at + dim]
            step = np.float32(self.lr) * grads[good, g_at : g_at + dim] / np.sqrt(s + np.float32(EPSILON))
        values[rows[good], at : at + dim] = before[rows[good], at : at + dim] - step
        return refused


class FtrlWithTheWrongSign(Ftrl):
    """w follows z instead of opposing it."""

    def apply(self, values: Any, state: Any, rows: Any, grads: Any, **where: Any) -> int:
        refused = Ftrl.apply(self, values, state, rows, grads, **where)
        named = rows[rows >= 0]
        values[named, where["at"] : where["at"] + where["dim"]] *= -1
        return refused


class DecaysEveryRow(Sgd):
    """Decay as a dense optimizer does it: rows without traffic fade, and cost a pass over the table."""

    def apply(self, values: Any, state: Any, rows: Any, grads: Any, **where: Any) -> int:
        others = np.setdiff1d(np.arange(len(values)), rows)
        values[others] *= np.float32(1 - self.lr * self.weight_decay)
        return Sgd.apply(self, values, state, rows, grads, **where)


class DecaysThroughTheGradient(Adagrad):
    """L2 regularization added to the gradient: the accumulator sees the decay."""

    def apply(self, values: Any, state: Any, rows: Any, grads: Any, **where: Any) -> int:
        at, dim, g_at = where["at"], where["dim"], where["grads_at"]
        grads = grads.copy()
        grads[:, g_at : g_at + dim] += np.float32(self.weight_decay) * values[rows, at : at + dim]
        plain = Adagrad(lr=self.lr, epsilon=self.epsilon, grad_cap=self.grad_cap, row_norm_cap=self.row_norm_cap)
        return plain.apply(values, state, rows, grads, **where)


class RefusesTooLate(Momentum):
    """The state has already taken the broken gradient when it is refused."""

    def apply(self, values: Any, state: Any, rows: Any, grads: Any, **where: Any) -> int:
        dim, g_at, s_at = where["dim"], where.get("grads_at", 0), where.get("state_at", 0)
        g = grads[:, g_at : g_at + dim]
        with np.errstate(all="ignore"):
            bad = (rows >= 0) & ~np.isfinite((g * g).sum(1))
        state[rows[bad], s_at : s_at + dim] += g[bad]
        return Momentum.apply(self, values, state, rows, grads, **where)


class RefusesTheWholeBatch(RowwiseAdagrad):
    """One broken row keeps all others from learning."""

    def apply(self, values: Any, state: Any, rows: Any, grads: Any, **where: Any) -> int:
        probe = RowwiseAdagrad.apply(self, values.copy(), state.copy(), rows, grads, **where)
        return probe or RowwiseAdagrad.apply(self, values, state, rows, grads, **where)


class ClipsEachColumn(Sgd):
    """A cap on every entry turns the gradient; a cap on the norm only shortens it."""

    def apply(self, values: Any, state: Any, rows: Any, grads: Any, **where: Any) -> int:
        plain = Sgd(lr=self.lr, weight_decay=self.weight_decay, row_norm_cap=self.row_norm_cap)
        return plain.apply(values, state, rows, np.clip(grads, -self.grad_cap, self.grad_cap), **where)


class StepsOnItsNeighbours(Sgd):
    """Columns of the row that belong to another segment."""

    def apply(self, values: Any, state: Any, rows: Any, grads: Any, **where: Any) -> int:
        return Sgd.apply(self, values, state, rows, grads, **(where | {"at": where["at"] - 1}))


class TakesTheAbsentRowForTheLast(Sgd):
    """-1 taken as Python takes it."""

    def apply(self, values: Any, state: Any, rows: Any, grads: Any, **where: Any) -> int:
        rows = np.where(rows == -1, len(values) - 1, rows).astype(np.int32)
        return Sgd.apply(self, values, state, rows, grads, **where)


WRONG: list[tuple[Any, Any, Callable[[Rule, Rule], None]]] = [
    (AdamWithAGlobalStep, {"lr": 0.01}, it_is_its_paper),
    (AdagradWithEpsilonUnderTheRoot, {"lr": 0.1}, it_is_its_paper_on_hard_inputs),
    (FtrlWithTheWrongSign, {"lr": 0.1}, it_is_its_paper),
    (DecaysEveryRow, {"lr": 0.1, "weight_decay": 0.3}, rows_without_a_gradient_stay),
    (DecaysThroughTheGradient, {"lr": 0.1, "weight_decay": 0.3}, it_is_its_paper),
    (RefusesTooLate, {"lr": 0.1}, a_broken_gradient_is_refused_alone),
    (RefusesTheWholeBatch, {"lr": 0.1}, a_broken_gradient_is_refused_alone),
    (ClipsEachColumn, {"lr": 0.1, "grad_cap": 0.5}, it_is_its_paper),
    (StepsOnItsNeighbours, {"lr": 0.1}, it_is_its_paper),
    (TakesTheAbsentRowForTheLast, {"lr": 0.1}, it_is_its_paper),
]


@pytest.mark.parametrize(("wrong", "options", "law"), WRONG, ids=lambda x: getattr(x, "__name__", ""))
def test_a_wrong_rule_is_caught_by_its_law(wrong: Any, options: Any, law: Callable[[Rule, Rule], None]) -> None:
    right = wrong.__mro__[1](**options)
    law(right, right)
    with pytest.raises(AssertionError):
        law(wrong(**options), right)


# --- repeated keys ----------------------------------------------------------------------------------------------------


def summed(rule: Rule, values: Any, state: Any, rows: Any, grads: Any) -> None:
    unique, inverse = unique_inverse(rows)
    rule.apply(values, state, unique.astype(np.int32), group_sum(grads, inverse, len(unique)))


def one_at_a_time(rule: Rule, values: Any, state: Any, rows: Any, grads: Any) -> None:
    for i in range(len(rows)):
        rule.apply(values, state, rows[i : i + 1], grads[i : i + 1])


def a_repeated_row_steps_once_along_its_sum(learn: Callable[..., None], rule: Rule) -> None:
    values, state = np.ones((4, 3), np.float32), np.tile(np.float32(rule.state_init(3)), (4, 1))
    want_values, want_state = values.copy(), state.copy()
    learn(rule, values, state, np.array([2, 0, 2], np.int32), np.array([[1] * 3, [5] * 3, [2] * 3], np.float32))
    rows, grads = np.array([0, 2], np.int32), np.array([[5] * 3, [3] * 3], np.float32)
    REFERENCES[type(rule)](rule, want_values, want_state, rows, grads)
    assert np.array_equal(values, want_values)
    assert np.array_equal(state, want_state)


@pytest.mark.parametrize("rule", SOURCES, ids=label)
def test_a_repeated_row_steps_once_along_its_sum(rule: Rule) -> None:
    a_repeated_row_steps_once_along_its_sum(summed, rule)
    if rule.state_dim(3):
        with pytest.raises(AssertionError):
            a_repeated_row_steps_once_along_its_sum(one_at_a_time, rule)
