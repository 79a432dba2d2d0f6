"""Keys that hurt hash tables: hot ones, sequential ones, and ones crafted by somebody who knows the hash."""

import numpy as np
import pytest

from infra.embedding import EmbeddingTable, unique_inverse
from infra.embedding.buckets import MAX_LOAD, WAYS, set_rows
from infra.embedding.index import CuckooIndex

WORD = 2**64
M1, M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def table_of(**options: int) -> EmbeddingTable:
    return EmbeddingTable(slot="user", dim=1, init_scale=0.1, **options)


def unshift(x: int, by: int) -> int:
    """The inverse of x ^ (x >> by)."""
    y = x
    for _ in range(64 // by):
        y = x ^ (y >> by)
    return y


def crafted(index: CuckooIndex, n: int) -> np.ndarray:
    """n keys that all hash to the buckets 0 and 1 of this index, at any size up to 2^20: the hash run backwards."""
    _, seed, odd = (int(x) % WORD for x in index.head[:3])
    keys = []
    for i in range(n):
        h = (i << 20) % 2**32 | (((i << 20) % 2**32 | 1) << 32) | (i >> 12) << 52
        x = unshift(h, 31)
        x = unshift(x * pow(M2, -1, WORD) % WORD, 27)
        x = unshift(x * pow(M1, -1, WORD) % WORD, 30)
        key = unshift(x, 32) * pow(odd, -1, WORD) % WORD ^ seed
        keys.append(key - WORD if key >= WORD // 2 else key)
    return np.array(keys, np.int64)


def must_hold(table: EmbeddingTable, keys: np.ndarray) -> None:
    unique = np.unique(keys)
    rows = table.find(unique)
    assert rows.min() >= 0
    assert len(np.unique(rows)) == len(unique) == len(table)


def test_crafted_keys_really_collide() -> None:
    table = table_of()
    keys = crafted(table._index, 10)
    assert len(set(keys.tolist())) == 10
    table.assign(keys, tick=0)
    assert np.flatnonzero(table._index.cells).max() < 32  # all ten in the first two buckets, which are now full
    assert table._index.head[4] == 1


def test_keys_crafted_against_the_known_seeds_cost_one_more_hashing_and_no_memory() -> None:
    table = table_of(capacity_hint=20_000)
    keys = crafted(table._index, 4_000)
    places = table._index.places
    table.assign(keys, tick=0)
    must_hold(table, keys)
    assert table._index.places == places
    assert table._index.head[4] <= 3


def test_keys_crafted_again_and_again_never_break_a_table() -> None:
    table, every = table_of(capacity_hint=1_000), []
    for _ in range(20):  # an attacker who reads the seeds of the running process after each change
        every.append(crafted(table._index, 11))
        table.assign(every[-1], tick=0)
    must_hold(table, np.concatenate(every))
    assert table._index.places <= 4_000


def test_keys_crafted_against_other_seeds_are_keys_like_any() -> None:
    keys = crafted(table_of(index_seed=1)._index, 20_000)
    table = table_of(index_seed=2)
    table.assign(keys, tick=0)
    must_hold(table, keys)
    assert len(table) > 0.4 * MAX_LOAD * table._index.places


@pytest.mark.parametrize("step", [1, 2**20, 2**32, 2**44, 5 * 7**15])
def test_regular_keys_fill_the_buckets_as_random_ones_do(step: int) -> None:
    keys = np.arange(200_000, dtype=np.int64) * np.int64(step % 2**63)
    keys = np.unique(keys)  # high steps wrap around
    table = table_of()
    table.assign(keys, tick=0)
    must_hold(table, keys)
    assert len(keys) > 0.4 * MAX_LOAD * table._index.places


def test_a_full_index_still_frees_places_up_to_its_load() -> None:
    index = CuckooIndex("x", 50_000)
    keys = np.random.default_rng(5).permutation(10**6)[: int(MAX_LOAD * index.places)]
    index.set(keys, np.arange(len(keys), dtype=np.int32))
    assert index.head[4] == 1  # never hashed anew
    assert np.array_equal(index.find(keys), np.arange(len(keys)))
    assert index.places // WAYS * 64 == index.words.nbytes
    assert index.words.ctypes.data % 64 == 0


def test_the_search_fills_98_places_in_100_before_it_gives_up() -> None:
    index = CuckooIndex("y", 100_000)
    keys = np.random.default_rng(6).permutation(10**6)[: index.places]
    rows, old = np.arange(len(keys), dtype=np.int32), np.empty(len(keys), np.int32)
    index.head[3] = -(10**9)  # so many keys short of the load at which it would grow
    placed = set_rows(index.words, index.cells, index.head, keys, rows, old, 0)
    assert placed > 0.982 * index.places  # 0.986; a search that does not know where a key's other bucket is: 0.978
    assert np.array_equal(index.find(keys[:placed]), rows[:placed])  # and the insert that failed moved nobody away
    assert index.find(keys[placed:]).max() == -1


def test_the_smallest_index_takes_any_eight_keys() -> None:
    for name in range(200):  # with two buckets, every second key would have only one if both hashes could agree
        index = CuckooIndex(str(name))
        index.set(np.arange(8), np.arange(8, dtype=np.int32))
        assert (index.places, index.head[4]) == (10, 1)


def test_an_index_made_for_a_few_keys_has_both_buckets_of_each() -> None:
    """One that was made for two to four keys once had a single bucket, and a key's other one lay beyond its memory."""
    for hint in range(12):
        index = CuckooIndex("few", hint)
        assert index.places >= max(10, hint)
        index.set(np.arange(hint), np.arange(hint, dtype=np.int32))
        assert index.find(np.arange(12)).tolist() == [*range(hint), *[-1] * (12 - hint)]


@pytest.mark.parametrize("kind", ["zipf", "one key at half", "random"])
def test_a_million_keys_agree_with_a_dict(kind: str) -> None:
    rng, n = np.random.default_rng(11), 1_000_000
    if kind == "zipf":
        keys = rng.zipf(2.0, n)
    else:
        keys = rng.integers(-(2**63), 2**63 - 1, n)
        if kind == "one key at half":
            keys[rng.random(n) < 0.5] = 12345
    table, order = table_of(), dict.fromkeys(keys.tolist())
    for lo in range(0, n, 100_000):
        table.assign(keys[lo : lo + 100_000], tick=lo)
    known = np.fromiter(order, np.int64, len(order))
    must_hold(table, known)
    unique, inverse = unique_inverse(keys)
    assert np.array_equal(unique, known)
    assert np.array_equal(unique[inverse], keys)
    absent = rng.integers(-(2**63), 2**63 - 1, 100_000)
    assert (table.find(absent) >= 0).tolist() == [key in order for key in absent.tolist()]
