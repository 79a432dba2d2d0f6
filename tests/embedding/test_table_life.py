"""Hypothesis drives a table beside the readable reference through every operation and every policy of a row's life.

The reference forgets an expired row the moment the tick moves and sorts all rows to evict; the table sweeps when it is
told to, and then something else again. What they hold must be equal after every call, row numbers aside.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from infra.embedding import DictTable, EmbeddingTable, Policy, Table
from infra.embedding.life.policy import Evict

DIM = 2
KEYS = st.lists(st.integers(-2, 40) | st.sampled_from([2**63 - 1, -(2**63), 2**32]), max_size=25).map(
    lambda keys: np.array(keys, np.int64)
)


def budget_for(rows: int, evict: Evict, sketch_bytes: int) -> int:
    """The bytes at which just so many rows fit."""
    size = Policy(byte_budget=1, evict=evict).row_bytes(DIM, 1)
    pairs = 1
    while 9 * pairs < rows:
        pairs *= 2
    return rows * size + 128 * (pairs + pairs // 16) + sketch_bytes


@st.composite
def policies(draw: Any) -> Policy:
    admission = draw(st.sampled_from(["all", "all", "count", "chance"]))
    evict: Evict = draw(st.sampled_from(["least-recent", "least-recent", "least-frequent", "smallest-norm"]))
    rows = draw(st.sampled_from([0, 1, 8, 20]))
    counts = admission == "count"
    return Policy(
        admit_after=draw(st.sampled_from([2, 3, 300, 70_000])) if counts else 1,
        admit_probability=draw(st.sampled_from([0.1, 0.5])) if admission == "chance" else 1.0,
        admit_window_ticks=draw(st.sampled_from([0, 1, 5])),
        sketch_bytes=draw(st.sampled_from([256, 4096])),
        expiry_ticks=draw(st.sampled_from([0, 1, 2, 10])),
        byte_budget=budget_for(rows, evict, 4096 if counts else 0) if rows else 0,
        evict=evict,
    )


class LifeMachine(RuleBasedStateMachine):
    """A table against the reference, which is told everything but sweeps and compactions."""

    cls: Any = EmbeddingTable

    @initialize(policy=policies())
    def begin(self, policy: Policy) -> None:
        self.options: dict[str, Any] = {
            "slot": "s", "dim": DIM, "init_scale": [1.0, 0.25], "state_init": 0.5, "max_rows": 2048, "policy": policy,
        }  # fmt: skip
        self.model = DictTable(**self.options)
        self.table: Table = self.cls(**self.options, capacity_hint=0)
        self.tick = 0

    @rule(keys=KEYS, later=st.sampled_from([0, 0, 1, -1, -8, 2]), many=st.sampled_from([1, 1, 2, 100, 40_000]))
    def assign(self, keys: np.ndarray, later: int, many: int) -> None:
        tick = self.tick + later
        self.tick = max(tick, self.tick)
        occurrences = None if many == 1 else 1 + np.abs(keys % many)
        want, got = self.model.assign(keys, tick, occurrences), self.table.assign(keys, tick, occurrences)
        seen = self.model.find(keys) >= 0
        assert (got >= 0)[seen].all()
        assert ((want >= 0) == (got >= 0))[seen | (want < 0)].all()
        self._learn(keys, 0.5)

    @rule(keys=KEYS, factor=st.sampled_from([0.0, -3.0, float("nan"), 0.5]))
    def learn(self, keys: np.ndarray, factor: float) -> None:
        self._learn(keys, factor)

    def _learn(self, keys: np.ndarray, factor: float) -> None:
        for table in (self.model, self.table):
            rows = np.unique(table.find(keys))
            table.values[rows[rows >= 0]] *= np.float32(factor)

    @rule(later=st.sampled_from([0, 1, 2, 7]))
    def advance(self, later: int) -> None:
        self.tick += later
        self.model.advance(self.tick)
        self.table.advance(self.tick)

    @rule(limit=st.sampled_from([0, 1, 3, None]))
    def sweep(self, limit: int | None) -> None:
        assert limit is None or self.table.sweep(limit) <= limit

    @rule()
    def compact(self) -> None:
        self.table.compact()
        rows = self.table.find(self.table.export().keys)
        assert sorted(rows.tolist()) == list(range(len(self.model)))

    @rule(keys=KEYS)
    def remove(self, keys: np.ndarray) -> None:
        assert self.table.remove(keys) == self.model.remove(keys)

    @rule(keys=KEYS, value=st.integers(0, 9), ago=st.integers(0, 5))
    def put(self, keys: np.ndarray, value: int, ago: int) -> None:
        n = len(keys)
        values = (value + np.arange(DIM * n)).reshape(n, DIM)
        more = (values, np.full((n, 1), value), np.full(n, self.tick - ago), np.arange(n) + 1)
        self.model.put(keys, *more)
        self.table.put(keys, *more)

    @rule(keys=KEYS)
    def look_up(self, keys: np.ndarray) -> None:
        want, got = self.model.lookup(keys), self.table.lookup(keys)
        assert np.array_equal(want[0], got[0], equal_nan=True)
        assert np.array_equal(want[1], got[1])

    @rule()
    def take_tombstones(self) -> None:
        assert self.table.take_tombstones().tolist() == self.model.take_tombstones().tolist()

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.table = self.table.copy()

    @rule(seed=st.integers(1, 5))
    def go_on_with_a_table_made_from_the_export(self, seed: int) -> None:
        """Other buckets, other rows: in the order of a shuffle."""
        rows = self.table.export()
        order = np.random.default_rng(seed).permutation(len(rows.keys))
        fresh: Table = self.cls(**self.options, capacity_hint=0, index_seed=seed)
        fresh.put(*(a[order] if len(a) else a for a in rows))
        if self.table.admission is not None and fresh.admission is not None:
            fresh.admission.load(self.table.admission.export())
        fresh.advance(self.table.tick)
        self.table.take_tombstones(), self.model.take_tombstones()
        self.model.counts = fresh.counts.copy()
        if self.table.admission is not None and self.model.admission is not None:
            self.table.admission.take_delta(), self.model.admission.take_delta()
        self.table = fresh

    @rule()
    def take_the_sketch_s_delta(self) -> None:
        if self.table.admission is not None and self.model.admission is not None:
            got, want = self.table.admission.take_delta(), self.model.admission.take_delta()
            assert {k: v.tolist() for k, v in got.items()} == {k: v.tolist() for k, v in want.items()}

    @rule()
    def clear(self) -> None:
        self.table.sweep()
        self.table.clear()
        self.model.clear()
        self.tick = 0

    @invariant()
    def it_holds_what_the_reference_holds(self) -> None:
        want, got = self.model.export(), self.table.export()
        for mine, theirs in zip(got, want, strict=True):
            assert np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f")
        assert self.table.tick == self.model.tick
        assert len(self.table) == len(self.model) == len(got.keys)
        assert len(self.model) <= self.table.row_limit
        rows = self.table.find(got.keys)
        assert len(set(rows.tolist())) == len(rows)
        if self.table.admission is not None and self.model.admission is not None:
            mine, theirs = self.table.admission.export(), self.model.admission.export()
            assert {k: v.tolist() for k, v in mine.items()} == {k: v.tolist() for k, v in theirs.items()}

    @rule()
    def it_counts_what_the_reference_counts(self) -> None:
        self.table.sweep()
        assert self.table.counts == self.model.counts


SETTINGS = settings(max_examples=150, stateful_step_count=30, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(("cls", "examples"), [(DictTable, 30), (EmbeddingTable, 120)])
def test_a_table_lives_as_the_reference_does(cls: Any, examples: int) -> None:
    machine = type("Machine", (LifeMachine,), {"cls": cls})
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=examples))
