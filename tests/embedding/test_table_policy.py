"""The laws of a row's life, one example each; and tables with one planted bug each, all to be caught."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from infra.embedding import DictTable, EmbeddingTable, Policy, Table, initial_vectors
from infra.embedding.life.admission import AdmissionSketch, Geometry
from infra.errors import ConfigError
from tests.embedding.test_table_life import SETTINGS, LifeMachine, budget_for

Make = Callable[..., Table]
NAMES: dict[str, Any] = {"slot": "item", "dim": 2, "seed": 3, "init_scale": 0.5, "max_rows": 4096}
TABLES: dict[str, type] = {"dict": DictTable, "cuckoo": EmbeddingTable}


def k(*keys: int) -> np.ndarray:
    return np.array(keys, np.int64)


def maker(cls: type) -> Make:
    return lambda policy=None, **more: cls(**{**NAMES, **more}, policy=policy)


def present(table: Table, keys: Any) -> list[int]:
    return [int(key) for key in keys if table.find(k(key))[0] >= 0]


# --- admission ------------------------------------------------------------------------------------------------------


def a_key_gets_its_row_at_its_nth_occurrence_for_any_n(make: Make) -> None:
    for n in (2, 15, 16, 17, 255, 256, 300, 65_535, 65_536, 70_000, 2**32 - 1):
        table = make(Policy(admit_after=n))
        assert table.assign(k(7), 0, k(n - 1)).tolist() == [-1], n
        assert table.find(k(7)).tolist() == [-1]
        assert (table.assign(k(8, 7), 5) >= 0).tolist() == [False, True], n
        assert table.counts.rejected == n
        assert table.counts.inserted == len(table) == 1


def a_rejected_key_s_gradient_has_no_row(make: Make) -> None:
    table = make(Policy(admit_after=2))
    rows = table.assign(k(1, 2, 1), 0)
    assert rows[0] == rows[2] >= 0 > rows[1]
    assert not table.gather(rows)[1].any()


def counts_age_with_the_window_before_the_last(make: Make) -> None:
    policy = Policy(admit_after=3, admit_window_ticks=10)
    for ticks, admitted in (((9, 10, 19), True), ((0, 19, 20), False), ((0, 1, 25), False), ((5, 14, 15), True)):
        table = make(policy)
        for tick in ticks:
            rows = table.assign(k(4), tick)
        assert (rows >= 0).tolist() == [admitted], ticks


def a_chance_is_drawn_by_hash_of_key_and_tick(make: Make) -> None:
    policy, keys = Policy(admit_probability=0.3), np.arange(1000)
    one, two, other = make(policy), make(policy), make(policy, seed=4)
    assert one.assign(keys, 0).tolist() == one.find(keys).tolist()
    for lo in (500, 0):
        two.assign(keys[lo : lo + 500], 0)
    other.assign(keys, 0)
    assert one.digest() == two.digest()
    assert present(one, keys) != present(other, keys)
    assert 300 - 60 < len(one) < 300 + 60  # four standard deviations
    assert one.counts.rejected == 1000 - len(one)
    one.assign(keys, 1)
    assert 510 - 64 < len(one) < 510 + 64
    often = make(policy)
    often.assign(keys, 0, np.full(1000, 3))
    assert 657 - 60 < len(often) < 657 + 60  # 1 - 0.7^3
    assert set(present(two, keys)) < set(present(often, keys))


def a_sketch_s_deltas_make_another_sketch_the_same(make: Make) -> None:
    policy = Policy(admit_after=300, admit_window_ticks=3, sketch_bytes=4096)
    one, two, rng = make(policy), make(policy), np.random.default_rng(2)
    assert one.admission is not None
    assert two.admission is not None
    sizes = []
    for tick in range(20):
        one.assign(rng.integers(0, 500, 40), tick, rng.integers(1, 9, 40))
        delta = one.admission.take_delta()
        sizes.append(len(delta["cells"]))
        two.admission.apply_delta(delta)
        two.advance(tick)
        want, got = one.admission.export(), two.admission.export()
        assert {name: t.tolist() for name, t in got.items()} == {name: t.tolist() for name, t in want.items()}
    assert one.admission.take_delta() == {}
    assert max(sizes) <= 4 * 40
    assert one.digest() == two.digest() != make(policy).digest()
    with pytest.raises(ConfigError, match="sketch"):
        two.admission.load(make(Policy(admit_after=300, sketch_bytes=4096)).admission.export())  # type: ignore[union-attr]


# --- expiry ---------------------------------------------------------------------------------------------------------


def a_row_is_absent_once_it_was_last_seen_before_the_horizon(make: Make) -> None:
    for swept in (False, True):
        table = make(Policy(expiry_ticks=5))
        table.assign(k(1, 2, 3), 10)
        table.assign(k(2), 12)
        table.advance(15)
        assert present(table, range(5)) == [1, 2, 3]
        table.advance(16)
        assert not swept or table.sweep(1) <= 1
        assert present(table, range(5)) == [2]
        assert table.lookup(k(1, 2))[1].tolist() == [False, True]
        assert table.export().keys.tolist() == [2]
        assert len(table) == 1
        assert table.remove(k(1, 2)) == 1
    with pytest.raises(ValueError, match="never goes back"):
        table.advance(15)


def an_expired_key_returns_with_its_initial_vector(make: Make) -> None:
    table = make(Policy(expiry_ticks=5), state_init=0.25)
    rows = table.assign(k(1, 2), 10)
    table.values[rows], table.state[rows] = 9, 9
    again = table.assign(k(1), 16)
    assert np.array_equal(table.gather(again), initial_vectors(k(1), "item", 3, 2, 0.5))
    assert table.state[again].tolist() == [[0.25]]
    table.sweep()
    assert (table.counts.inserted, table.counts.expired) == (3, 2)


def tombstones_are_the_keys_that_lost_their_row_and_have_none(make: Make) -> None:
    table = make(Policy(expiry_ticks=5))
    table.assign(np.arange(3000), 10)
    table.assign(k(7), 14)
    table.remove(k(8, 9, 5000))
    table.advance(16)
    table.assign(k(9, 10), 16)
    table.sweep(100)
    gone = sorted(set(range(3000)) - {7, 9, 10})
    assert table.take_tombstones().tolist() == gone
    assert table.take_tombstones().tolist() == []
    table.advance(20)
    assert table.take_tombstones().tolist() == [7]
    with pytest.raises(ValueError, match="tombstones=False"):
        make(tombstones=False).take_tombstones()


def a_full_table_makes_room_of_what_expired(make: Make) -> None:
    table = make(Policy(expiry_ticks=1), max_rows=4)
    table.assign(k(1, 2, 3, 4), 0)
    table.assign(k(5, 6), 2)
    assert table.export().keys.tolist() == [5, 6]
    with pytest.raises(ConfigError, match="max_rows"):
        table.assign(k(7, 8, 9), 2)
    with pytest.raises(ConfigError, match="max_rows"):
        table.put(np.arange(10, 15), np.ones((5, 2)), np.ones((5, 1)), np.full(5, 9))
    assert present(table, range(20)) == [5, 6, 7, 8]


# --- a budget -------------------------------------------------------------------------------------------------------


def the_least_go_first_and_ties_go_by_key(make: Make) -> None:
    """Of 64 rows three go for one that comes: 40, the least, and two of the three that are next."""
    for evict in ("least-recent", "least-frequent", "smallest-norm"):
        table = make(Policy(byte_budget=budget_for(64, evict, 0), evict=evict))
        assert table.row_limit == 64
        others = np.setdiff1d(np.arange(64), k(10, 20, 30, 40))
        for keys, tick, occurrences, vectors in (
            (k(30, 10, 20), 4, 2, [[0, 1], [1, 0], [0, -1]]),
            (k(40), 3, 1, [[0, 0.5]]),
            (others, 5, 3, np.full((60, 2), 2)),
        ):
            rows = table.assign(keys, tick, np.full(len(keys), occurrences))
            table.values[rows] = vectors
        table.assign(k(others[0], 99), 6)
        assert table.take_tombstones().tolist() == [10, 20, 40], evict
        assert len(table) == 62
        assert table.counts.evicted == 3


def a_budget_never_refuses_traffic(make: Make) -> None:
    table = make(Policy(byte_budget=budget_for(40, "least-recent", 0)))
    rng = np.random.default_rng(1)
    for tick in range(60):
        keys = rng.integers(0, 10**6, 30)
        assert (table.assign(keys, tick) >= 0).all()
        assert len(table) <= 40
        assert (table.find(keys) >= 0).all()
    assert table.counts.refused == 0
    assert table.counts.evicted == table.counts.inserted - len(table) > 1000
    rows = table.assign(np.arange(100, 0, -1), 99)
    assert present(table, range(200)) == list(range(1, 41))
    assert (rows >= 0).tolist() == [key <= 40 for key in range(100, 0, -1)]
    assert table.counts.refused == 60


def what_expired_goes_before_anybody_is_evicted(make: Make) -> None:
    table = make(Policy(byte_budget=budget_for(40, "least-recent", 0), expiry_ticks=5))
    table.assign(np.arange(30), 0)
    table.assign(np.arange(30, 40), 3)
    table.assign(np.arange(100, 130), 6)
    assert len(table) == 40
    assert (table.counts.expired, table.counts.evicted) == (30, 0)


def a_table_made_smaller_keeps_its_best_rows(make: Make) -> None:
    big = make()
    for tick in range(10):
        big.assign(np.arange(tick * 10, tick * 10 + 10), tick)
    small = make(Policy(byte_budget=budget_for(64, "least-recent", 0)))
    rows = small.put(*big.export())
    assert present(small, range(200)) == list(range(100 - 62, 100))
    assert (rows >= 0).sum() == 62


def columns_have_scales_and_states_of_their_own(make: Make) -> None:
    table = make(init_scale=[0.0, 2.0], state_init=[0.1, 0.0, 7.0], state_dim=3)
    rows = table.assign(np.arange(100), 0)
    assert not np.signbit(table.values[rows, 0]).any()
    assert np.array_equal(table.values[rows, 1], initial_vectors(np.arange(100), "item", 3, 2, 2.0)[:, 1])
    assert np.array_equal(table.state[rows], np.tile(np.float32([0.1, 0.0, 7.0]), (100, 1)))
    for bad in ({"init_scale": [1.0]}, {"state_init": [1.0, 2.0, 3.0]}):
        with pytest.raises(ValueError, match="columns"):
            make(**bad)


LAWS: list[Callable[[Make], None]] = [
    a_key_gets_its_row_at_its_nth_occurrence_for_any_n,
    a_rejected_key_s_gradient_has_no_row,
    counts_age_with_the_window_before_the_last,
    a_chance_is_drawn_by_hash_of_key_and_tick,
    a_sketch_s_deltas_make_another_sketch_the_same,
    a_row_is_absent_once_it_was_last_seen_before_the_horizon,
    an_expired_key_returns_with_its_initial_vector,
    tombstones_are_the_keys_that_lost_their_row_and_have_none,
    a_full_table_makes_room_of_what_expired,
    the_least_go_first_and_ties_go_by_key,
    a_budget_never_refuses_traffic,
    what_expired_goes_before_anybody_is_evicted,
    a_table_made_smaller_keeps_its_best_rows,
    columns_have_scales_and_states_of_their_own,
]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_table_keeps_the_law(law: Callable[[Make], None], name: str) -> None:
    law(maker(TABLES[name]))


@pytest.mark.parametrize(("admit_after", "kind"), [(2, np.uint8), (300, np.uint16), (10**6, np.uint32)])
def test_a_sketch_overcounts_no_more_than_it_says(admit_after: int, kind: type) -> None:
    """N other occurrences in `cells` cells: a new key is over by t or more with a chance of 4 N / (cells · t)."""
    policy = Policy(admit_after=admit_after, sketch_bytes=1 << 14)
    shape, sketch = Geometry.of(policy), AdmissionSketch(policy, "x", 0)
    assert shape.kind is kind
    assert sketch.nbytes <= policy.sketch_bytes
    n, t = shape.lines * shape.width // 16, admit_after - 1
    sketch.admit(np.arange(n), np.full(n, t))
    strangers = np.arange(10**6, 10**6 + 5_000).reshape(-1, 10)  # few at a time: they count, too
    early = np.mean([sketch.copy().admit(some, np.ones(10, np.int64)) for some in strangers])
    assert 0 < early <= 4 * n * t / (shape.lines * shape.width * t)
    assert early < 0.03  # a quarter of the cells taken: 0.25⁴, and more where a line is short


def test_a_budget_bounds_the_bytes_that_are_held() -> None:
    policy = Policy(byte_budget=4_000_000, admit_after=2, sketch_bytes=1 << 16)
    table = EmbeddingTable(slot="x", dim=16, init_scale=1.0, policy=policy, capacity_hint=0, tombstones=False)
    for lo in range(0, 200_000, 5_000):
        table.assign(np.arange(lo, lo + 5_000), lo, np.full(5_000, 2))
    memory = table.memory()
    assert len(table) > 0.9 * table.row_limit
    assert memory.sketch > 0.9 * (1 << 16)
    assert 0.8 * policy.byte_budget < memory.total <= policy.byte_budget
    with pytest.raises(ConfigError, match="holds no row"):
        EmbeddingTable(slot="x", dim=16, init_scale=1.0, policy=Policy(byte_budget=200))


def test_compaction_gives_memory_back_and_changes_nothing_else() -> None:
    table = EmbeddingTable(
        slot="x", dim=8, init_scale=1.0, policy=Policy(expiry_ticks=2), capacity_hint=0, tombstones=False
    )
    table.assign(np.arange(20_000), 0)
    table.assign(np.arange(0, 20_000, 40), 3)
    before, digest = table.memory(), table.digest()
    assert table.compact() == 19_500
    assert table.digest() == digest
    assert table.memory().total < before.total / 10
    rows = table.find(np.arange(0, 20_000, 40))
    assert sorted(rows.tolist()) == list(range(500))
    table.assign(np.arange(20_000), 4)
    assert len(table) == 20_000
    assert table.assign(k(1), 4).tolist() == table.find(k(1)).tolist()


def test_policies_that_mean_nothing_are_refused() -> None:
    for bad in (
        {"admit_after": 0}, {"admit_after": 2**32}, {"admit_probability": 0.0}, {"admit_probability": 1.5},
        {"admit_after": 2, "admit_probability": 0.5}, {"expiry_ticks": -1}, {"byte_budget": -1}, {"sketch_bytes": 8},
        {"admit_window_ticks": -1}, {"evict": "random"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="Policy"):
            Policy(**bad)  # type: ignore[arg-type]
    table = EmbeddingTable(slot="x", dim=1, init_scale=1.0, policy=Policy(admit_after=2))
    for tick, occurrences in ((2**31 - 1, None), (0, k(1)), (0, k(1, 0))):
        with pytest.raises(ValueError, match=r"tick|occurrences"):
            table.assign(k(1, 2), tick, occurrences)


# --- tables with one bug each ---------------------------------------------------------------------------------------


class EvictsInRowOrder(EmbeddingTable):
    """Whoever lies first goes first, as a clock hand or a sample would have it."""

    def _evict(self, n: int, protected: np.ndarray) -> None:
        rows = np.setdiff1d(np.flatnonzero(self.last_seen[: self._heap.high] != 2**31 - 1), protected)[:n]
        self.counts.evicted += len(self._drop(self._row_keys[rows]))


class EvictsByWallTime(EmbeddingTable):
    """An LRU list: the order of the calls, and not of the ticks that they tell."""

    seen: dict[int, int]

    def assign(self, keys: np.ndarray, tick: int, occurrences: np.ndarray | None = None) -> np.ndarray:
        rows = super().assign(keys, tick, occurrences)
        self.seen = getattr(self, "seen", {}) | {key: time.monotonic_ns() for key in keys.tolist()}
        return rows

    def _evict(self, n: int, protected: np.ndarray) -> None:
        keys = np.setdiff1d(self._index.items()[0], self._row_keys[protected]).tolist()
        gone = sorted(keys, key=lambda key: getattr(self, "seen", {}).get(key, 0))[:n]
        self.counts.evicted += len(self._drop(np.array(gone, np.int64)))


class RefusesWhenFull(EmbeddingTable):
    """A budget that turns traffic away."""

    def _evict(self, n: int, protected: np.ndarray) -> None:
        pass


class ExpiresWhatWasSwept(EmbeddingTable):
    """A row is absent when somebody has swept it, and until then it is not."""

    swept_at = -(2**31)

    @property
    def _horizon(self) -> int:
        return self.policy.horizon(self.swept_at)

    def sweep(self, limit: int | None = None) -> int:
        self.swept_at = self.tick
        return super().sweep(limit)


class ForgetsAKeyWithoutATombstone(EmbeddingTable):
    """Memory is freed, and nobody downstream hears of it."""

    def sweep(self, limit: int | None = None) -> int:
        kept, self._tombstones = self._tombstones, None
        n = super().sweep(limit)
        self._tombstones = kept
        return n


class KeepsOldVectors(EmbeddingTable):
    """A key that returns finds the row that it had."""

    def _insert(self, keys: np.ndarray, tick: int, *out: np.ndarray) -> np.ndarray:
        before = self._index.find(keys)
        old = self.gather(before)
        rows = super()._insert(keys, tick, *out)
        self.values[rows[before >= 0]] = old[before >= 0]
        return rows


class FourBits(AdmissionSketch):
    """A counter that stays at 15."""

    def admit(self, keys: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
        admitted = super().admit(keys, occurrences)
        np.minimum(self._cells, 15, out=self._cells)
        return admitted & (self._policy.admit_after <= 15)


class Deaf(AdmissionSketch):
    """A restored table begins to count anew."""

    def load(self, tensors: Mapping[str, Any]) -> None:
        super().load({**tensors, "cells": k(), "counts": k()})


class SaturatesBelowTheThreshold(EmbeddingTable):
    """See `FourBits`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.admission = FourBits(self.policy, self.slot, 0) if self.policy.counts else None


class ForgetsAdmission(EmbeddingTable):
    """See `Deaf`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.admission = Deaf(self.policy, self.slot, 0) if self.policy.counts else None


class CountsFromZeroWhenCopied(EmbeddingTable):
    """A copy that is not told who had been seen before."""

    def copy(self) -> EmbeddingTable:
        twin = super().copy()
        if twin.admission is not None:
            twin.admission.clear()
        return twin


WRONG: list[tuple[type, Callable[[Make], None]]] = [
    (EvictsInRowOrder, the_least_go_first_and_ties_go_by_key),
    (EvictsByWallTime, the_least_go_first_and_ties_go_by_key),
    (RefusesWhenFull, a_budget_never_refuses_traffic),
    (ExpiresWhatWasSwept, a_row_is_absent_once_it_was_last_seen_before_the_horizon),
    (ForgetsAKeyWithoutATombstone, tombstones_are_the_keys_that_lost_their_row_and_have_none),
    (KeepsOldVectors, an_expired_key_returns_with_its_initial_vector),
    (SaturatesBelowTheThreshold, a_key_gets_its_row_at_its_nth_occurrence_for_any_n),
]
FOUND_BY_THE_MACHINE = [
    EvictsInRowOrder, EvictsByWallTime, RefusesWhenFull, ExpiresWhatWasSwept, ForgetsAdmission,
    CountsFromZeroWhenCopied,
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "law"), WRONG, ids=lambda x: x.__name__)
def test_a_wrong_table_is_caught_by_its_law(wrong: type, law: Callable[[Make], None]) -> None:
    with pytest.raises(AssertionError):
        law(maker(wrong))


@pytest.mark.parametrize("wrong", FOUND_BY_THE_MACHINE, ids=lambda x: x.__name__)
def test_the_machine_finds_a_wrong_table_by_itself(wrong: type) -> None:
    unshrunk = settings(SETTINGS, phases=[Phase.generate], max_examples=400, report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(type("Machine", (LifeMachine,), {"cls": wrong}), settings=unshrunk)
