"""The laws of an embedding table, over every implementation; and tables with one planted bug each, all to be caught."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from infra.embedding import DictTable, EmbeddingTable, Policy, Table, initial_vectors
from infra.errors import ConfigError

Make = Callable[..., Table]
OPTIONS: dict[str, Any] = {"slot": "item", "dim": 3, "state_dim": 2, "seed": 7, "init_scale": 0.5, "state_init": 0.25}
MIN, MAX = -(2**63), 2**63 - 1
REMEMBERS = Policy(expiry_ticks=1_000_000)  # so that rows keep when they were last seen


def k(*keys: int) -> np.ndarray:
    return np.array(keys, np.int64)


def maker(cls: type, **more: Any) -> Make:
    return lambda **changed: cls(**{**OPTIONS, **more, **changed})


TABLES = {
    "dict": maker(DictTable),
    "cuckoo": maker(EmbeddingTable),
    "cuckoo-from-nothing": maker(EmbeddingTable, capacity_hint=0),
    "cuckoo-otherwise-hashed": maker(EmbeddingTable, index_seed=99, capacity_hint=5000),
    "dict-remembers": maker(DictTable, policy=REMEMBERS),
    "cuckoo-remembers": maker(EmbeddingTable, policy=REMEMBERS),
}


def saw(table: Table, keys: np.ndarray, ticks: list[int]) -> bool:
    """Whether these rows were last seen then, or the table keeps no such thing, and says so."""
    if not table.policy.loses_rows:
        return len(table.last_seen) == len(table.pick(keys).last_seen) == 0
    return table.last_seen[table.find(keys)].tolist() == table.pick(keys).last_seen.tolist() == ticks


# --- the laws -------------------------------------------------------------------------------------------------------


def a_lookup_never_inserts(make: Make) -> None:
    table = make()
    table.assign(k(1, 2), tick=1)
    before = table.digest()
    for _ in range(3):
        assert table.find(k(3, 1, 4)).tolist()[0::2] == [-1, -1]
        values, found = table.lookup(k(3, 1, 4))
        assert found.tolist() == [False, True, False]
        assert not values[[0, 2]].any()
    assert len(table) == 2
    assert table.digest() == before


def assign_gives_equal_keys_one_row_and_others_their_own(make: Make) -> None:
    table = make()
    rows = table.assign(k(5, 5, 0, -1, MIN, MAX, 5, 0), tick=1)
    assert rows[0] == rows[1] == rows[6]
    assert rows[2] == rows[7]
    assert len(set(rows.tolist())) == 5 == len(table)
    assert table.find(k(5, 0, -1, MIN, MAX)).tolist() == rows[[0, 2, 3, 4, 5]].tolist()


def a_new_row_is_a_function_of_seed_slot_and_key(make: Make) -> None:
    table = make()
    table.assign(np.arange(50), tick=1)
    table.values[table.find(k(30))] = 9
    table.state[table.find(k(30))] = 9
    table.remove(k(30, 31))
    table.assign(k(77, 30, 31), tick=4)
    keys = k(30, 31, 77, 3)
    assert np.array_equal(table.lookup(keys)[0], initial_vectors(keys, "item", 7, 3, 0.5))
    assert np.all(table.state[table.find(keys)] == 0.25)
    assert saw(table, keys, [4, 4, 4, 1])


def last_seen_never_goes_back(make: Make) -> None:
    table = make(policy=REMEMBERS)
    table.assign(k(1, 2), tick=5)
    table.assign(k(1), tick=3)
    table.assign(k(2), tick=8)
    assert saw(table, k(1, 2), [5, 8])


def rows_of_unknown_age_were_seen_now(make: Make) -> None:
    plain, table = make(policy=Policy()), make(policy=REMEMBERS)
    plain.assign(k(1, 2), tick=5)
    table.assign(k(2, 3), tick=9)
    table.put(*plain.export())
    assert saw(table, k(1, 2, 3), [9, 9, 9])
    table.put(k(1), np.zeros((1, 3)), np.zeros((1, 2)))
    early = make(policy=REMEMBERS)
    with pytest.raises(ValueError, match="advance the table first"):
        early.put(*plain.export())
    assert len(early) == 0
    table.advance(9 + 1_000_000)
    assert len(table) == 3
    table.advance(10 + 1_000_000)
    assert len(table) == 0


def rows_and_slabs_stay_where_they_are(make: Make) -> None:
    table = make()
    rows = table.assign(k(10, 20, 30), tick=0)
    values, address = table.values, table.values.ctypes.data
    values[rows[1]] = 42
    for lo in range(100, 4_100, 500):
        table.assign(np.arange(lo, lo + 500), tick=1)
        table.remove(np.arange(lo, lo + 100))
    assert table.values is values
    assert table.values.ctypes.data == address
    assert table.find(k(10, 20, 30)).tolist() == rows.tolist()
    assert np.all(table.lookup(k(20))[0] == 42)


def absent_rows_gather_as_zeros(make: Make) -> None:
    table = make()
    rows = table.assign(np.arange(40), tick=0)
    rows[::3] = -1
    out = np.full((40, 3), np.nan, np.float32)
    got = table.gather(rows, out)
    assert got is out
    assert not got[::3].any()
    expected = initial_vectors(np.arange(40), "item", 7, 3, 0.5)
    assert np.array_equal(got[1::3], expected[1::3])
    for wrong in ([40], [-2], [2**31 - 1]):
        with pytest.raises(ValueError, match="row numbers"):
            table.gather(np.array(wrong, np.int32))
    for bad in (np.empty((40, 4), np.float32), np.empty((40, 3)), np.empty((3, 40), np.float32).T):
        with pytest.raises(ValueError, match="contiguous"):
            table.gather(rows, bad)


def put_upserts_whole_rows_and_the_last_of_equal_keys_counts(make: Make) -> None:
    table = make()
    table.assign(k(1, 2), tick=9)
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    table.put(k(2, 3, 4, 3), values, values[:, :2] + 0.5, k(4, 5, 6, 7))
    assert np.array_equal(table.lookup(k(2, 3, 4))[0], values[[0, 3, 2]])
    rows = table.find(k(2, 3, 4))
    assert np.array_equal(table.state[rows], values[[0, 3, 2], :2] + 0.5)
    assert saw(table, k(2, 3, 4), [4, 7, 6])
    assert len(table) == 4
    with pytest.raises(ValueError, match="reshape"):
        table.put(k(8), values, values[:, :2], k(1))
    assert table.find(k(8)).tolist() == [-1]


def remove_counts_what_was_there_and_frees_it_once(make: Make) -> None:
    table = make()
    table.assign(np.arange(10), tick=0)
    assert table.remove(k(3, 3, 99, 4)) == 2
    assert table.remove(k(3)) == 0
    rows = table.assign(k(3, 4, 100, 101), tick=1)
    assert len(set(rows.tolist())) == 4
    every = table.find(np.array([*range(10), 100, 101]))
    assert every.min() >= 0
    assert len(set(every.tolist())) == 12 == len(table)


def an_export_is_sorted_and_restores_the_same_table(make: Make) -> None:
    table, keys = make(), np.random.default_rng(1).integers(MIN, MAX, 300)
    for tick in range(3):
        table.values[table.assign(keys[tick::3], tick)] += np.float32(tick)
    rows = table.export()
    assert rows.keys.tolist() == sorted(keys.tolist())
    for other in TABLES.values():
        restored = other(policy=table.policy)
        restored.put(*(a[::-1] for a in rows))
        assert restored.digest() == table.digest()
    rows.values[:] = 0
    assert table.values[table.find(keys[:1])].any()


def pick_copies_the_rows_that_are_there_in_the_order_asked(make: Make) -> None:
    table = make()
    table.values[table.assign(np.arange(20), tick=3)] *= np.float32(2)
    picked = table.pick(k(7, 99, 3, -1, 12))
    assert picked.keys.tolist() == [7, 3, 12]
    rows = table.find(picked.keys)
    assert np.array_equal(picked.values, table.values[rows])
    assert np.array_equal(picked.state, table.state[rows])
    assert saw(table, picked.keys, [3, 3, 3])
    picked.values[:] = 0
    assert table.values[rows].any()
    assert len(table.pick(k(99)).keys) == 0


def a_digest_knows_content_not_history(make: Make) -> None:
    one, two = make(), make()
    one.assign(np.arange(500), tick=2)
    two.assign(np.arange(900)[::-1].copy(), tick=2)
    assert one.digest() != two.digest()
    two.remove(np.arange(500, 900))
    assert one.digest() == two.digest()
    for changed in (one.values, one.state, *([one.last_seen] if len(one.last_seen) else [])):
        before = one.digest()
        changed[one.find(k(77))] += changed.dtype.type(1)
        assert one.digest() != before


def a_copy_is_independent(make: Make) -> None:
    table = make()
    table.assign(np.arange(100), tick=0)
    table.remove(k(1, 2, 3))
    twin, before = table.copy(), table.digest()
    assert twin.digest() == before
    twin.assign(np.arange(100, 3000), tick=1)
    twin.values[twin.find(k(50))] = 1
    twin.remove(k(60))
    assert table.digest() == before
    table.clear()
    assert len(table) == 0
    assert len(twin) == 2996
    assert table.digest() == make().digest()
    assert table.assign(k(5, 6), tick=0).tolist() == table.find(k(5, 6)).tolist()


def a_full_table_says_so_and_keeps_what_it_has(make: Make) -> None:
    table = make(max_rows=4)
    table.assign(k(1, 2, 3), tick=0)
    with pytest.raises(ConfigError, match="max_rows"):
        table.assign(k(3, 4, 5, 6), tick=1)
    assert (table.find(k(1, 2, 3, 4)) >= 0).all()
    assert table.find(k(5, 6)).tolist() == [-1, -1]
    table.remove(k(2))
    table.assign(k(5), tick=2)
    assert len(table) == 4


def any_integer_vector_is_taken_as_keys(make: Make) -> None:
    table = make()
    rows = table.assign(np.array([3, 9, 4], np.int32), tick=0)
    frozen = np.frombuffer(k(3, 9, 4).tobytes(), np.int64)
    strided = np.array([3, 0, 9, 0, 4, 0], np.int64)[::2]
    assert table.find(frozen).tolist() == table.find(strided).tolist() == rows.tolist()
    assert table.find(k()).tolist() == []
    assert table.assign(k(), tick=0).tolist() == []
    assert table.lookup(k())[0].shape == (0, 3)
    assert table.remove(k()) == 0
    with pytest.raises(ValueError, match="int64"):
        table.find(np.array([1.5]))


def any_sequence_agrees_with_a_dict(make: Make, seed: int = 3) -> None:
    """Random calls against {key: (values, state, last seen)}; half of the keys come back again and again."""
    rng, table = np.random.default_rng(seed), make()
    model: dict[int, tuple[bytes, bytes, int]] = {}
    for tick in range(120):
        n = int(rng.integers(0, 80))
        keys = np.where(rng.random(n) < 0.5, rng.integers(0, 60, n), rng.integers(0, 2_000, n))
        call = rng.integers(0, 6)
        if call <= 2:
            rows = table.assign(keys, tick)
            fresh = initial_vectors(keys, "item", 7, 3, 0.5)
            for key, first in zip(keys.tolist(), fresh, strict=True):
                old = model.get(key, (first.tobytes(), np.full(2, 0.25, np.float32).tobytes(), tick))
                model[key] = (old[0], old[1], max(old[2], tick))
            table.values[rows] += np.float32(1)
            for key in set(keys.tolist()):
                values = np.frombuffer(model[key][0], np.float32) + np.float32(1)
                model[key] = (values.tobytes(), *model[key][1:])
        elif call == 3:
            assert table.remove(keys) == len(model.keys() & set(keys.tolist())), f"seed {seed}"
            for key in keys.tolist():
                model.pop(key, None)
        elif call == 4:
            values = rng.normal(size=(n, 3)).astype(np.float32)
            table.put(keys, values, values[:, :2], keys % 50)
            model.update(
                {q: (v.tobytes(), v[:2].tobytes(), q % 50) for q, v in zip(keys.tolist(), values, strict=True)}
            )
        else:
            assert table.lookup(keys)[1].tolist() == [q in model for q in keys.tolist()], f"seed {seed}"
        got = table.export()
        assert got.keys.tolist() == sorted(model), f"seed {seed}, tick {tick}"
        have = [(v.tobytes(), s.tobytes()) for v, s in zip(got.values, got.state, strict=True)]
        assert have == [model[q][:2] for q in sorted(model)], f"seed {seed}, tick {tick}"
        assert saw(table, got.keys, [model[q][2] for q in sorted(model)]), f"seed {seed}, tick {tick}"
        assert len(set(table.find(got.keys).tolist())) == len(model) == len(table), f"seed {seed}, tick {tick}"


LAWS = [
    a_lookup_never_inserts,
    assign_gives_equal_keys_one_row_and_others_their_own,
    a_new_row_is_a_function_of_seed_slot_and_key,
    last_seen_never_goes_back,
    rows_of_unknown_age_were_seen_now,
    rows_and_slabs_stay_where_they_are,
    absent_rows_gather_as_zeros,
    put_upserts_whole_rows_and_the_last_of_equal_keys_counts,
    remove_counts_what_was_there_and_frees_it_once,
    an_export_is_sorted_and_restores_the_same_table,
    pick_copies_the_rows_that_are_there_in_the_order_asked,
    a_digest_knows_content_not_history,
    a_copy_is_independent,
    a_full_table_says_so_and_keeps_what_it_has,
    any_integer_vector_is_taken_as_keys,
    any_sequence_agrees_with_a_dict,
]


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_table_keeps_the_law(law: Callable[[Make], None], make: Make) -> None:
    law(make)


# --- tables with one bug each ---------------------------------------------------------------------------------------


class ReadInserts(EmbeddingTable):
    """A look-up makes default rows: under traffic it grows without bound."""

    def find(self, keys: np.ndarray) -> np.ndarray:
        return self.assign(keys, 0)


class LosesAKeyWhenItGrows(EmbeddingTable):
    """Growth forgets one key: what a displacement without a place would do."""

    def assign(self, keys: np.ndarray, tick: int) -> np.ndarray:
        before = self._index.places
        rows = super().assign(keys, tick)
        if self._index.places != before:
            self._index.drop(self._index.items()[0][:1])
        return rows


class OverwritesOnCollision(EmbeddingTable):
    """A full pair of buckets evicts somebody instead of moving them: a cache, not a table."""

    def assign(self, keys: np.ndarray, tick: int) -> np.ndarray:
        if len(self) > 30:
            self._index.drop(self._index.items()[0][7:8])
        return super().assign(keys, tick)


class AliasesARow(EmbeddingTable):
    """A removed row is freed twice, so that two keys get it."""

    def remove(self, keys: np.ndarray) -> int:
        rows = self.find(np.unique(keys))
        self._heap.give(rows[rows >= 0][:1])
        return super().remove(keys)


class DrawsFromASequence(EmbeddingTable):
    """The initial vector depends on the row, that is on who came before."""

    def assign(self, keys: np.ndarray, tick: int) -> np.ndarray:
        new = self.find(keys) < 0
        rows = super().assign(keys, tick)
        self.values[rows[new]] = initial_vectors(rows[new].astype(np.int64), "item", 7, self.dim, 0.5)
        return rows


class ExportsInRowOrder(EmbeddingTable):
    """Where a row lies reaches the outside."""

    def export(self) -> Any:
        rows = super().export()
        order = np.argsort(self.find(rows.keys), kind="stable")
        return type(rows)(*(a[order] for a in rows[:3]), rows.last_seen)


class ForgetsWhenItSaw(EmbeddingTable):
    """The last call's tick counts, not the greatest."""

    def assign(self, keys: np.ndarray, tick: int) -> np.ndarray:
        rows = super().assign(keys, tick)
        self.last_seen[rows] = tick
        return rows


class TakesUnknownAgesAsNever(EmbeddingTable):
    """Rows without an age have the least: an expiry that is switched on later takes them all at once."""

    def put(self, keys: np.ndarray, values: Any, state: Any, last_seen: Any = None, frequency: Any = None) -> Any:
        known = last_seen is not None and len(last_seen)
        return super().put(keys, values, state, last_seen if known else np.zeros(len(keys), np.int32), frequency)


class GathersTheLastRowForAbsentOnes(EmbeddingTable):
    """-1 taken as Python takes it."""

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        rows = np.where(rows == -1, self._heap.high - 1, rows).astype(np.int32)
        return super().gather(rows, out)


class MovesItsSlabs(EmbeddingTable):
    """Growth by reallocation: an earlier view goes stale."""

    def assign(self, keys: np.ndarray, tick: int) -> np.ndarray:
        rows = super().assign(keys, tick)
        self.values = self.values.copy()
        return rows


WRONG: list[tuple[type, Callable[[Make], None]]] = [
    (ReadInserts, a_lookup_never_inserts),
    (LosesAKeyWhenItGrows, any_sequence_agrees_with_a_dict),
    (OverwritesOnCollision, any_sequence_agrees_with_a_dict),
    (AliasesARow, remove_counts_what_was_there_and_frees_it_once),
    (DrawsFromASequence, a_new_row_is_a_function_of_seed_slot_and_key),
    (ExportsInRowOrder, an_export_is_sorted_and_restores_the_same_table),
    (ForgetsWhenItSaw, last_seen_never_goes_back),
    (TakesUnknownAgesAsNever, rows_of_unknown_age_were_seen_now),
    (GathersTheLastRowForAbsentOnes, absent_rows_gather_as_zeros),
    (MovesItsSlabs, rows_and_slabs_stay_where_they_are),
]


@pytest.mark.parametrize(("wrong", "law"), WRONG, ids=lambda x: x.__name__)
def test_a_wrong_table_is_caught_by_its_law(wrong: type, law: Callable[[Make], None]) -> None:
    with pytest.raises(AssertionError):
        law(maker(wrong, capacity_hint=0, max_rows=8192))


def test_numbers_that_make_no_table_are_refused() -> None:
    for make in TABLES.values():
        for bad in ({"dim": 0}, {"state_dim": -1}, {"max_rows": 0}):
            with pytest.raises(ValueError, match="item"):
                make(**bad)


def test_no_optimizer_state_is_an_option() -> None:
    for policy in (Policy(), REMEMBERS):
        digests = set()
        for make in TABLES.values():
            table = make(state_dim=0, dim=1, policy=policy)
            table.assign(np.arange(10), tick=3)
            digests.add(table.digest())
            assert table.export().state.shape == (10, 0)
        assert len(digests) == 1
