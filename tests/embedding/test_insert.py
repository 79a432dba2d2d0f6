"""An insert works in chunks, may stop in the middle of one, and then goes on: nobody may see that."""

import numpy as np
import pytest

from infra.embedding import DictTable, EmbeddingTable, Policy
from infra.embedding.insert import CHUNK
from infra.errors import ConfigError

N = 3 * CHUNK + 77
POLICIES = (Policy(), Policy(expiry_ticks=1_000))  # in the first, rows keep no ages


def both(**options):
    shape = {"slot": "s", "dim": 5, "state_dim": 2, "init_scale": 0.5, "state_init": 0.25, "capacity_hint": 0}
    return [cls(**shape, **options) for cls in (EmbeddingTable, DictTable)]


def draws(seed, distinct, n=N):
    return np.random.default_rng(seed).integers(0, distinct, n) * 7_919


@pytest.mark.parametrize("policy", POLICIES, ids=["plain", "remembers"])
@pytest.mark.parametrize("distinct", [3, 500, CHUNK, 4 * N])
def test_vectors_and_rows_are_those_of_assign_and_gather_over_many_chunks_and_through_growth(distinct, policy):
    table, plain = both(policy=policy)
    for tick in range(4):
        keys = draws(tick, distinct)
        out = np.full((N, 5), np.nan, np.float32)
        vectors, rows = table.lookup_or_insert(keys, tick, out=out)
        assert vectors is out
        assert rows.tolist() == table.find(keys).tolist()
        assert np.array_equal(vectors, table.gather(rows))
        expected, their_rows = plain.lookup_or_insert(keys, tick)
        assert np.array_equal(vectors, expected)
        table.values[np.unique(rows)] += np.float32(1)
        plain.values[np.unique(their_rows)] += np.float32(1)
        assert table.digest() == plain.digest()


@pytest.mark.parametrize("policy", POLICIES, ids=["plain", "remembers"])
@pytest.mark.parametrize("most", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 500])
def test_keys_before_the_first_without_a_row_are_in_and_were_seen(most, policy):
    table, plain = both(max_rows=most, policy=policy)
    keys = np.random.default_rng(1).permutation(np.repeat(np.arange(N), 2))
    first = [table.assign(keys[:1], 0), plain.assign(keys[:1], 0)]
    assert all(len(rows) == 1 for rows in first)
    for each in (table, plain):
        with pytest.raises(ConfigError, match="max_rows"):
            each.lookup_or_insert(keys, 3)
        assert len(each) == most
    assert table.digest() == plain.digest()


def test_expired_keys_that_return_begin_anew_once_however_often_they_are_in_the_call():
    table, plain = both(policy=Policy(expiry_ticks=5))
    for each in (table, plain):
        rows = each.assign(np.arange(2_000), 0)
        each.values[rows] = 9.0
        each.assign(np.arange(0, 2_000, 3), 4)
        vectors, _ = each.lookup_or_insert(np.concatenate([draws(2, 1_500) // 7_919, np.arange(1_990, 2_010)]), 8)
        assert (vectors == 9.0).all(1).any()
        assert (vectors != 9.0).all(1).any()
    assert table.digest() == plain.digest()
    assert 0 < table.counts.expired <= plain.counts.expired
    table.sweep()
    assert table.counts.expired == plain.counts.expired


def test_what_is_not_admitted_reads_as_zeros():
    for table in both(policy=Policy(admit_after=2)):
        vectors, rows = table.lookup_or_insert(np.array([4, 5, 4]), 0, np.array([1, 1, 1]))
        assert (rows >= 0).tolist() == [True, False, True]
        assert (vectors != 0).any(1).tolist() == [True, False, True]


def test_an_output_of_another_shape_changes_nothing():
    for table in both():
        with pytest.raises(ValueError, match=r"float32\(2, 5\)"):
            table.lookup_or_insert(np.arange(2), 0, out=np.empty((3, 5), np.float32))
        assert len(table) == 0
