"""Several segments in a row: the laws, a readable reference beside the table, and tables with one bug each."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from infra.embedding import DictTable, EmbeddingTable, Policy, Segment, SegmentedTable, initial_vectors
from infra.embedding.life.policy import NEVER, room_to_leave
from infra.errors import ConfigError

Make = Callable[..., SegmentedTable]
# The vector comes first and is grown, so that neither order nor columns of the groups are those of the segments.
VECTOR = Segment("vector", 4, 0.5, 1, (0.1,), admit_after=5)
BIAS = Segment("bias", 1, 0.0, 2, (0.0, 0.25))
SIDE = Segment("side", 2, 0.25, 0, ())
SEGMENTS = (VECTOR, BIAS, SIDE)
BUDGET = 8_000


def maker(cls: type[SegmentedTable] = SegmentedTable, make: Any = EmbeddingTable) -> Make:
    return partial(cls, slot="s", segments=SEGMENTS, seed=7, capacity_hint=0, max_rows=4096, make=make)


def k(*keys: int) -> np.ndarray:
    return np.array(keys, np.int64)


def vectors(*keys: int) -> np.ndarray:
    return initial_vectors(k(*keys), "s+vector", 7, 4, 0.5)


def times(n: int) -> np.ndarray:
    return np.array([n], np.int64)


# --- laws -------------------------------------------------------------------------------------------------------------


def a_rare_key_costs_the_small_row_only(make: Make) -> None:
    table = make()
    rows = table.assign(k(1, 2, 3, 1), tick=0)
    assert rows["vector"].tolist() == [-1] * 4
    assert rows[""][0] == rows[""][3]
    assert (len(table), len(table.tables["vector"])) == (3, 0)
    values, found = table.lookup(k(1, 9))
    assert found.tolist() == [True, False]
    assert not values[:, :4].any()
    assert np.array_equal(values[0, 5:], initial_vectors(k(1), "s", 7, 3, (0.0, 0.25, 0.25))[0, 1:])


def a_key_grows_at_its_threshold_and_keeps_what_it_has(make: Make) -> None:
    for enough in (2, 5, 300, 70_000):
        segments = (Segment("vector", 4, 0.5, 1, (0.1,), admit_after=enough), BIAS, SIDE)
        table = make(segments=segments)
        table.assign(k(8), 0, times(enough - 1))
        side = table.lookup(k(8))[0][:, 4:]
        assert table.find(k(8))["vector"].tolist() == [-1]
        rows = table.assign(k(8), tick=1)
        assert rows["vector"][0] >= 0
        assert np.array_equal(table.lookup(k(8))[0], np.concatenate((vectors(8), side), axis=1))
        table.assign(k(4, 4), 1, np.array([enough // 2, enough - enough // 2]))
        assert table.find(k(4))["vector"][0] >= 0


def a_lookup_never_inserts_nor_counts(make: Make) -> None:
    table = make()
    table.assign(k(1), 0, times(4))
    before = table.digest()
    for _ in range(9):
        table.lookup(k(1, 2, 3))
        table.find(k(1, 2, 3))
    assert table.digest() == before


def segments_keep_to_their_columns(make: Make) -> None:
    table = make()
    rows = table.assign(k(1, 2), 0, np.array([9, 1]))
    for value, segment in enumerate(SEGMENTS, 1):
        group, at, dim, state_at, state_dim = table.columns(segment.name)
        assert (dim, state_dim) == (segment.dim, segment.state_dim)
        slabs, here = table.tables[group], rows[group][rows[group] >= 0]
        assert (slabs.state[here, state_at : state_at + state_dim] == np.float32(segment.state_init)).all()
        slabs.values[here, at : at + dim] = value
    want = [[1, 1, 1, 1, 2, 3, 3], [0, 0, 0, 0, 2, 3, 3]]
    assert table.lookup(k(1, 2))[0].tolist() == want
    out = np.empty((3, 7), np.float32)
    assert table.gather(table.find(k(2, 5, 1)), out) is out
    assert out.tolist() == [want[1], [0] * 7, want[0]]


def an_evicted_base_row_takes_its_grown_row_with_it(make: Make) -> None:
    table = make(policy=Policy(byte_budget=BUDGET))
    limit = table.tables[""].row_limit
    table.assign(k(1), 0, times(9))
    table.tables["vector"].values[table.find(k(1))["vector"]] = 42
    table.assign(np.arange(100, 100 + limit), 1)
    assert table.find(k(1))[""].tolist() == [-1]
    assert table.find(k(1))["vector"].tolist() == [-1]
    assert table.export()["vector"].keys.tolist() == []
    table.assign(k(1), 2, times(4))
    assert table.find(k(1))["vector"].tolist() == [-1], "what it had counted went with the row"
    table.assign(k(1), 2)
    assert np.array_equal(table.lookup(k(1))[0][:, :4], vectors(1))


def an_expired_base_row_takes_its_grown_row_with_it(make: Make) -> None:
    for sweep in (False, True):
        table = make(policy=Policy(expiry_ticks=2))
        table.assign(k(1, 2), 0, np.array([9, 9]))
        table.tables["vector"].values[table.find(k(1))["vector"]] = 42
        table.advance(2)
        assert table.lookup(k(1))[0][0, 0] == 42
        table.advance(3)
        assert [r.tolist() for r in table.find(k(1)).values()] == [[-1], [-1]]
        if sweep:
            assert table.sweep() in (4, 0)  # the reference has nothing left to sweep
        table.assign(k(1), 3, times(4))
        assert table.find(k(1))["vector"].tolist() == [-1]
        table.assign(k(1), 3)
        assert np.array_equal(table.lookup(k(1))[0][:, :4], vectors(1))
        assert {g: t.tolist() for g, t in table.take_tombstones().items()} == {"": [2], "vector": [2]}


def a_removed_key_is_gone_everywhere(make: Make) -> None:
    table = make()
    table.assign(k(1, 2, 3), 0, np.array([9, 9, 1]))
    assert table.remove(k(1, 3, 4)) == 2
    assert {g: r.keys.tolist() for g, r in table.export().items()} == {"": [2], "vector": [2]}
    assert {g: t.tolist() for g, t in table.take_tombstones().items()} == {"": [1, 3], "vector": [1]}
    assert {g: t.tolist() for g, t in table.take_tombstones().items()} == {"": [], "vector": []}


def a_full_grown_table_lets_grown_rows_go_and_keeps_base_rows(make: Make) -> None:
    table = make(policy=Policy(byte_budget=40_000), grown_share=0.1)
    grown, keys = table.tables["vector"], np.arange(300, dtype=np.int64)
    for lo in range(0, 300, 20):
        table.assign(keys[lo : lo + 20], lo, np.full(20, 9))
    assert grown.counts.evicted > 0
    assert 20 <= len(grown) <= grown.row_limit < 300 == len(table)
    assert table.find(keys[:20])["vector"].max() == -1
    table.assign(keys[:1], 300)
    assert np.array_equal(table.lookup(keys[:1])[0][:, :4], vectors(0))


def a_restored_table_goes_on_alike(make: Make) -> None:
    policy = Policy(expiry_ticks=40, byte_budget=BUDGET, admit_after=2, sketch_bytes=1024)
    one, rng = make(policy=policy), np.random.default_rng(2)
    for tick in range(60):
        learn(one, one.assign(rng.integers(0, 150, 12), tick))
    two = make(policy=policy, index_seed=5)
    for group, rows in one.export().items():
        two.put(group, *rows)
    two.advance(one.tick)
    assert one.admission is not None
    assert two.admission is not None
    two.admission.load(one.admission.export())
    assert two.digest() == one.digest()
    for tick in range(60, 120):
        keys = rng.integers(0, 150, 12)
        for table in (one, two):
            learn(table, table.assign(keys, tick))
        assert two.digest() == one.digest(), f"tick {tick}"


LAWS = [
    a_rare_key_costs_the_small_row_only,
    a_key_grows_at_its_threshold_and_keeps_what_it_has,
    a_lookup_never_inserts_nor_counts,
    segments_keep_to_their_columns,
    an_evicted_base_row_takes_its_grown_row_with_it,
    an_expired_base_row_takes_its_grown_row_with_it,
    a_removed_key_is_gone_everywhere,
    a_full_grown_table_lets_grown_rows_go_and_keeps_base_rows,
    a_restored_table_goes_on_alike,
]


def learn(table: SegmentedTable, rows: dict[str, np.ndarray]) -> None:
    for group, numbers in rows.items():
        table.tables[group].values[np.unique(numbers[numbers >= 0])] += np.float32(1)


@pytest.mark.parametrize("make", [EmbeddingTable, DictTable])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_segmented_table_keeps_the_law(law: Callable[[Make], None], make: Any) -> None:
    law(maker(make=make))


# --- the reference ----------------------------------------------------------------------------------------------------


class Model:
    """The same over dicts: {key: [last seen, vector]} a group, and {key: occurrences}; the least recent are evicted."""

    def __init__(self, table: SegmentedTable) -> None:
        self.limits = {group: t.row_limit for group, t in table.tables.items()}
        self.enough = {"vector": VECTOR.admit_after}
        self.rows: dict[str, dict[int, list[Any]]] = {group: {} for group in table.tables}
        self.count: dict[int, int] = {}
        self.gone: dict[str, set[int]] = {group: set() for group in table.tables}
        self.policy, self.tick = table.policy, NEVER

    def assign(self, keys: list[int], tick: int, often: list[int]) -> None:
        self.advance(max(tick, self.tick))
        self.touch("", set(keys), tick)
        for key, n in zip(keys, often, strict=True):
            if key in self.rows[""]:
                self.count[key] = self.count.get(key, 0) + n
        for group, enough in self.enough.items():
            self.touch(group, {key for key in keys if self.count.get(key, 0) >= enough}, tick)
        self.advance(self.tick)

    def touch(self, group: str, keys: set[int], tick: int) -> None:
        rows, limit = self.rows[group], self.limits[group]
        new = sorted(keys - rows.keys())
        others = sorted(rows.keys() - keys, key=lambda key: (rows[key][0], key))
        for key in others[: room_to_leave(limit, len(rows), len(new), len(rows) - len(others))]:
            self.forget(group, key)
        for key in keys & rows.keys():
            rows[key][0] = max(rows[key][0], tick)
        for key in new[: limit - len(rows)]:
            first = initial_vectors(k(key), "s", 7, 3, (0.0, 0.25, 0.25)) if group == "" else vectors(key)
            rows[key] = [tick, first[0].copy()]

    def forget(self, group: str, key: int) -> None:
        for g in self.rows if group == "" else [group]:
            if self.rows[g].pop(key, None):
                self.gone[g].add(key)
        if group == "":
            self.count.pop(key)

    def advance(self, tick: int) -> None:
        self.tick = tick
        for group, rows in self.rows.items():
            for key in [key for key, (seen, _) in rows.items() if seen < self.policy.horizon(tick)]:
                self.forget(group, key) if key in rows else None


KEYS = st.lists(st.integers(-3, 30), max_size=12)


class SegmentMachine(RuleBasedStateMachine):
    """A segmented table beside the model, through everything that a table can be asked."""

    cls: type[SegmentedTable] = SegmentedTable

    @initialize(expiry=st.sampled_from([0, 1, 4]), budget=st.sampled_from([0, 1_500, 2_500]))
    def begin(self, expiry: int, budget: int) -> None:
        self.options = {"policy": Policy(expiry_ticks=expiry, byte_budget=budget)}
        self.table = maker(self.cls)(**self.options)
        self.model, self.tick = Model(self.table), 0

    @rule(keys=KEYS, later=st.sampled_from([0, 0, 1, 1, -1, -6, 3]), many=st.sampled_from([1, 5, 9]))
    def assign(self, keys: list[int], later: int, many: int) -> None:
        tick = self.tick + later
        self.tick = max(self.tick, tick)
        often = [1 + abs(key) % many for key in keys]
        self.table.assign(np.array(keys, np.int64), tick, np.array(often, np.int64))
        self.model.assign(keys, tick, often)

    @rule(keys=KEYS)
    def learn(self, keys: list[int]) -> None:
        learn(self.table, self.table.find(np.array(keys, np.int64)))
        for rows in self.model.rows.values():
            for key in set(keys) & rows.keys():
                rows[key][1] += np.float32(1)

    @rule(keys=KEYS)
    def remove(self, keys: list[int]) -> None:
        present = set(keys) & self.model.rows[""].keys()
        assert self.table.remove(np.array(keys, np.int64)) == len(present)
        for key in present:
            self.model.forget("", key)

    @rule(later=st.sampled_from([0, 1, 5]))
    def advance(self, later: int) -> None:
        if self.model.tick > NEVER:
            self.tick = max(self.tick, self.model.tick + later)
            self.table.advance(self.model.tick + later)
            self.model.advance(self.model.tick + later)

    @rule(limit=st.sampled_from([1, 3, None]))
    def sweep(self, limit: int | None) -> None:
        self.table.sweep(limit)

    @rule()
    def take_tombstones(self) -> None:
        got = self.table.take_tombstones()
        want = {group: sorted(keys - self.model.rows[group].keys()) for group, keys in self.model.gone.items()}
        assert {group: keys.tolist() for group, keys in got.items()} == want
        self.model.gone = {group: set() for group in want}

    @rule()
    def compact(self) -> None:
        self.table.compact()

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.table = self.table.copy()

    @rule(seed=st.integers(0, 3))
    def go_on_with_a_restored_one(self, seed: int) -> None:
        self.take_tombstones()
        restored = maker(self.cls)(**self.options, index_seed=seed)
        for group, rows in self.table.export().items():
            restored.put(group, *rows)
        restored.advance(self.table.tick)
        assert restored.digest() == self.table.digest()
        self.table = restored

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "table"):
            return
        got = self.table.export()
        for group, want in self.model.rows.items():
            assert got[group].keys.tolist() == sorted(want)
            assert got[group].last_seen.tolist() == [want[key][0] for key in sorted(want)]
            assert got[group].values.tolist() == [want[key][1].tolist() for key in sorted(want)]
            rows = self.table.find(np.arange(-3, 31))[group]
            assert (rows >= 0).tolist() == [key in want for key in range(-3, 31)]
        assert got[""].state[:, -1].tolist() == [self.model.count[key] for key in sorted(self.model.rows[""])]
        assert not self.model.rows["vector"].keys() - self.model.rows[""].keys()


SETTINGS = settings(max_examples=50, stateful_step_count=25, deadline=None, derandomize=True, database=None)


def test_any_sequence_agrees_with_the_reference() -> None:
    run_state_machine_as_test(SegmentMachine, settings=SETTINGS)


# --- tables with one bug each -----------------------------------------------------------------------------------------


class ForgetsToFollow(SegmentedTable):
    """Grown rows stay when their base row goes: the key comes back to a vector that somebody learned long ago."""

    def _follow(self, fresh: np.ndarray) -> None:
        return


class FollowsEvictionsOnly(SegmentedTable):
    """A base row made anew takes what is there: wrong where expiry has not been swept, or ticks went back."""

    def find(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {group: table.find(keys) for group, table in self.tables.items()}

    def advance(self, tick: int) -> None:
        self.tables[""].advance(tick)


class CountsReads(SegmentedTable):
    """A look-up counts as an occurrence: serving traffic makes rows."""

    def find(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        base = self.tables[""].find(keys)
        self.tables[""].state[base[base >= 0], -1] += 1
        return super().find(keys)


class CountsCallsNotOccurrences(SegmentedTable):
    """A key that occurs a hundred times in a batch is as rare as one that occurs once."""

    def assign(self, keys: np.ndarray, tick: int, occurrences: Any = None) -> Any:
        return super().assign(keys, tick, None)


class PutsGroupsSideBySide(SegmentedTable):
    """Columns in the order of the tables, not of the segments."""

    def gather(self, rows: Any, out: Any = None) -> Any:
        parts = [table.gather(rows[group]) for group, table in self.tables.items()]
        result = np.empty((len(rows[""]), self.dim), np.float32) if out is None else out
        result[:] = np.concatenate(parts, axis=1)
        return result


class ForgetsTheCountInItsExport(SegmentedTable):
    """A restored table counts from zero again."""

    def export(self) -> Any:
        rows = super().export()
        rows[""].state[:, -1] = 1
        return rows


class SaysNothingOfGrownTombstones(SegmentedTable):
    """A replica would keep them for ever."""

    def take_tombstones(self) -> Any:
        return super().take_tombstones() | {"vector": k()}


WRONG: list[tuple[type[SegmentedTable], Callable[[Make], None]]] = [
    (ForgetsToFollow, an_evicted_base_row_takes_its_grown_row_with_it),
    (FollowsEvictionsOnly, an_expired_base_row_takes_its_grown_row_with_it),
    (CountsReads, a_lookup_never_inserts_nor_counts),
    (CountsCallsNotOccurrences, a_key_grows_at_its_threshold_and_keeps_what_it_has),
    (PutsGroupsSideBySide, segments_keep_to_their_columns),
    (ForgetsTheCountInItsExport, a_restored_table_goes_on_alike),
    (SaysNothingOfGrownTombstones, a_removed_key_is_gone_everywhere),
]


@pytest.mark.parametrize(("wrong", "law"), WRONG, ids=lambda x: x.__name__)
def test_a_wrong_table_is_caught_by_its_law(wrong: type[SegmentedTable], law: Callable[[Make], None]) -> None:
    with pytest.raises(AssertionError):
        law(maker(wrong))


@pytest.mark.parametrize("wrong", [ForgetsToFollow, SaysNothingOfGrownTombstones])
def test_the_reference_catches_wrong_tables_by_itself(wrong: type[SegmentedTable]) -> None:
    machine = type("Wrong", (SegmentMachine,), {"cls": wrong})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=settings(SETTINGS, phases=[Phase.generate]))


# --- edges ------------------------------------------------------------------------------------------------------------


def test_a_slot_of_base_segments_only_is_one_plain_table() -> None:
    table = SegmentedTable(slot="s", segments=(BIAS, SIDE), seed=7, max_rows=99)
    plain = EmbeddingTable(
        slot="s", dim=3, seed=7, init_scale=(0.0, 0.25, 0.25), state_dim=2, state_init=(0.0, 0.25), max_rows=99
    )
    rows = table.assign(k(3, 1, 2), tick=4)
    plain.assign(k(3, 1, 2), tick=4)
    assert list(rows) == [""]
    assert table.digest() == plain.digest()
    assert np.array_equal(table.lookup(k(1, 8))[0], plain.lookup(k(1, 8))[0])


def test_thresholds_have_a_table_each() -> None:
    table = maker()(segments=(BIAS, VECTOR, Segment("wide", 8, 0.1, 1, (0.0,), 9), Segment("late", 1, 0.0, 0, (), 5)))
    assert {group: t.dim for group, t in table.tables.items()} == {"": 1, "vector": 5, "wide": 8}
    rows = table.assign(k(1, 2, 3), 0, np.array([1, 5, 9]))
    assert {g: (r >= 0).tolist() for g, r in rows.items()} == {
        "": [True] * 3, "vector": [False, True, True], "wide": [False, False, True],
    }  # fmt: skip
    assert table.columns("late") == ("vector", 4, 1, 1, 0)
    assert table.gather(rows).shape == (3, 14)


def test_a_grown_row_cannot_be_put_without_its_base_row() -> None:
    table = maker()()
    with pytest.raises(ValueError, match="base rows"):
        table.put("vector", k(1), np.ones((1, 4)), np.ones((1, 1)), k(0))
    assert len(table.tables["vector"]) == 0


def test_the_byte_budget_is_the_slots() -> None:
    table = maker()(policy=Policy(byte_budget=50_000), grown_share=0.25)
    assert {g: t.policy.byte_budget for g, t in table.tables.items()} == {"": 37_500, "vector": 12_500}
    keys = np.arange(3000, dtype=np.int64)
    for lo in range(0, 3000, 50):
        table.assign(keys[lo : lo + 50], lo, np.full(50, 9))
    assert len(table.tables["vector"]) > 0
    with pytest.raises(ConfigError, match="byte_budget"):
        maker()(policy=Policy(byte_budget=5))


def test_a_cleared_table_is_a_new_one() -> None:
    table = maker()(policy=Policy(expiry_ticks=3))
    table.assign(k(1, 2), 9, np.array([9, 1]))
    table.clear()
    assert table.digest() == maker()(policy=Policy(expiry_ticks=3)).digest()
    table.assign(k(1), 0)
    assert table.find(k(1))["vector"].tolist() == [-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": (VECTOR,)}, "admit_after 1"),
        ({"segments": ()}, "admit_after 1"),
        ({"segments": (BIAS, BIAS)}, "once"),
        ({"grown_share": 1.0}, "grown_share"),
    ],
)
def test_options_that_make_no_table_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maker()(**options)


@pytest.mark.parametrize(
    "wrong",
    [{"name": "A/b"}, {"name": ""}, {"dim": 0}, {"state_dim": 1}, {"admit_after": 0}, {"admit_after": 2**24 + 1}],
)
def test_numbers_that_make_no_segment_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="segment"):
        Segment(**({"name": "a", "dim": 1, "init_scale": 0.0, "state_dim": 0, "state_init": ()} | wrong))
