"""Keys that hurt hash tables: hot ones, sequential ones, and ones crafted by somebody who knows the hash."""

import numpy as np
import pytest

from infra.embedding import EmbeddingTable, unique_inverse
from infra.embedding.index.bucket import near_of
from infra.embedding.index.index import MAX_LOAD, CuckooIndex

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


def keys_of(hashes: list[int], seed: int, odd: int) -> np.ndarray:
    """The keys of these 64-bit hashes: the hash run backwards."""
    keys = []
    for h in hashes:
        x = unshift(h, 31)
        x = unshift(x * pow(M2, -1, WORD) % WORD, 27)
        x = unshift(x * pow(M1, -1, WORD) % WORD, 30)
        key = unshift(x, 32) * pow(odd, -1, WORD) % WORD ^ seed
        keys.append(key - WORD if key >= WORD // 2 else key)
    return np.array(keys, np.int64)


def crafted(index: CuckooIndex, n: int) -> np.ndarray:
    """n keys that all hash to the buckets 0 and 1 of this index, at any size up to 2^20 pairs."""
    _, seed, odd = (int(x) % WORD for x in index.head[:3])
    return keys_of([(i << 20) % 2**32 | (i >> 12) << 52 for i in range(n)], seed, odd)


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
    used = table._index.cells[: table._index.nbytes // 4]
    assert np.flatnonzero(used).max() < 32  # all ten in the first two buckets, which are now full
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


def test_keys_crafted_against_the_unseeded_hash_are_keys_like_any() -> None:
    """Whoever reads this source knows the mix; only the seeds keep one pair of buckets from taking all their keys."""
    hashes = [(i << 20) % 2**32 | (i >> 12) << 52 for i in range(50_000)]
    keys = keys_of(hashes, seed=0, odd=1)
    x = np.array(hashes, np.uint64)
    assert all(near_of(np.uint64(1 << 20), np.uint64(2**20 - 1), h) == 0 for h in x[:100])  # they would
    table = table_of()
    table.assign(keys, tick=0)
    must_hold(table, keys)
    assert table._index.head[4] == 1
    assert len(table) > 0.5 * table._index.places


@pytest.mark.parametrize("other", [0, 1, 1000])
def test_one_key_ten_million_times_is_one_row(other: int) -> None:
    keys = np.full(1_000_000, 77, np.int64)
    keys[:other] = np.arange(other)
    table = table_of()
    for _ in range(10):
        rows = table.assign(keys, tick=0)
    assert len(np.unique(rows[other:])) == 1
    must_hold(table, keys)


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
