"""A slot's rules, segment by segment, over the rows of a batch."""

from typing import Any

import numpy as np
import pytest

from infra.embedding import Segment, SegmentedTable
from trainer.rules import Adagrad, Ftrl, Rule
from trainer.rules.reference import REFERENCES
from trainer.rules.segments import apply

RULES: dict[str, Rule] = {"vector": Adagrad(lr=0.1, accumulator_init=0.1), "bias": Ftrl(lr=0.2, l1=0.01)}


def segment(name: str, dim: int, scale: float, admit_after: int) -> Segment:
    rule = RULES[name]
    return Segment(name, dim, scale, rule.state_dim(dim), rule.state_init(dim), admit_after)


@pytest.fixture(params=[1, 5], ids=["side by side", "grown"])
def table(request: Any) -> SegmentedTable:
    segments = (segment("vector", 3, 0.5, request.param), segment("bias", 1, 0.0, 1))
    return SegmentedTable(slot="s", segments=segments, max_rows=100)


def content(table: SegmentedTable) -> dict[str, list[np.ndarray]]:
    return {group: [rows.values, rows.state] for group, rows in table.export().items()}


def test_each_segment_steps_by_its_own_rule(table: SegmentedTable) -> None:
    rng, keys = np.random.default_rng(1), np.array([5, 6, 7], np.int64)
    for _ in range(4):
        rows = table.assign(keys, 0, np.array([9, 9, 1]))
        grads = rng.normal(size=(3, 4)).astype(np.float32)
        want = {group: (t.values[:9].copy(), t.state[:9].copy()) for group, t in table.tables.items()}
        for name, columns in (("vector", slice(0, 3)), ("bias", slice(3, 4))):
            group, at, dim, s, n = table.columns(name)
            values, state = want[group]
            rule = RULES[name]
            REFERENCES[type(rule)](rule, values[:, at : at + dim], state[:, s : s + n], rows[group], grads[:, columns])
        assert apply(RULES, table, rows, grads) == 0
        for group, (values, state) in want.items():
            assert np.array_equal(table.tables[group].values[:9], values)
            assert np.array_equal(table.tables[group].state[:9], state)


@pytest.mark.parametrize("column", [0, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_row_broken_in_one_segment_is_refused_in_all(table: SegmentedTable, column: int, value: float) -> None:
    rows = table.assign(np.array([5, 6], np.int64), 0, np.array([9, 9]))
    before = content(table)
    grads = np.ones((2, 4), np.float32)
    grads[0, column] = value
    assert apply(RULES, table, rows, grads) == 1
    for group, arrays in content(table).items():
        for now, was in zip(arrays, before[group], strict=True):
            assert np.array_equal(now[0], was[0])
            assert not np.array_equal(now[1], was[1])


def test_a_broken_gradient_of_a_segment_that_the_row_has_not_breaks_nothing(table: SegmentedTable) -> None:
    rows = table.assign(np.array([5], np.int64), 0)
    grads = np.array([[np.nan, 0, 0, 1]], np.float32)
    refused = apply(RULES, table, rows, grads)
    assert refused == int("vector" not in table.tables)
    assert bool(table.lookup(np.array([5]))[0][0, 3]) == (refused == 0)


def test_a_rate_for_this_step_overrides_all(table: SegmentedTable) -> None:
    rows = table.assign(np.array([5], np.int64), 0, np.array([9]))
    before = table.gather(rows)
    apply(RULES, table, rows, np.ones((1, 4), np.float32), lr=0.0001)
    assert np.abs(table.gather(rows) - before).max() < 0.001


def test_rules_and_gradients_that_do_not_fit_are_refused(table: SegmentedTable) -> None:
    rows = table.assign(np.array([5], np.int64), 0)
    grads = np.ones((1, 4), np.float32)
    for rules, g in (
        ({"bias": RULES["bias"]}, grads),
        (RULES | {"other": RULES["bias"]}, grads),
        (RULES | {"bias": RULES["vector"]}, grads),
        (RULES, grads[:, :3]),
        (RULES, np.ones((2, 4), np.float32)),
    ):
        with pytest.raises(ValueError, match=r"segment|grads"):
            apply(rules, table, rows, g)
