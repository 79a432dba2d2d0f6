"""The fused look-up does what find, a look at the horizon and gather do one after the other."""

import numpy as np
import pytest

from infra.embedding import EmbeddingTable
from infra.embedding.life.policy import Policy

N = 3_000


def table_of(dim: int, expiry_ticks: int = 0) -> tuple[EmbeddingTable, np.ndarray]:
    """A table of random rows, a third of them seen at tick 0, 1 and 2 each, and keys of which half are in it."""
    keys = np.random.default_rng(dim).permutation(4 * N) - N
    table = EmbeddingTable(slot="x", dim=dim, init_scale=1.0, policy=Policy(expiry_ticks=expiry_ticks))
    for tick in range(3):
        table.assign(keys[tick * N // 3 : (tick + 1) * N // 3], tick)
    return table, np.random.default_rng(1).permutation(np.concatenate([keys[: 2 * N], keys[:5]]))


@pytest.mark.parametrize("dim", [1, 3, 15, 16, 17, 32, 40, 64, 100])
def test_a_look_up_is_find_and_gather_at_any_width(dim: int) -> None:
    table, keys = table_of(dim)
    for n in (0, 1, 7, 127, 128, 129, 137, len(keys)):
        values, found = table.lookup(keys[:n])
        rows = table.find(keys[:n])
        assert found.tolist() == (rows >= 0).tolist()
        assert np.array_equal(values, np.where(found[:, None], table.values[rows], 0))
        assert np.array_equal(values, table.gather(rows))


@pytest.mark.parametrize("tick", [2, 3, 4, 5, 9])
def test_a_look_up_does_not_see_rows_beyond_the_horizon(tick: int) -> None:
    table, keys = table_of(dim=5, expiry_ticks=2)
    table.advance(tick)
    rows = table._index.find(keys)
    live = (rows >= 0) & (table.last_seen[rows] >= tick - 2)
    values, found = table.lookup(keys)
    assert np.array_equal(found, live)
    assert np.array_equal(values, np.where(live[:, None], table.values[rows], 0))
    assert not np.array_equal(found, rows >= 0) or tick == 2


def test_a_look_up_into_an_array_writes_all_of_it_and_nothing_else() -> None:
    table, keys = table_of(dim=17)
    room = np.full((len(keys) + 2, 17), np.nan, np.float32)
    values, _ = table.lookup(keys, room[1:-1])
    assert values.base is room
    assert np.array_equal(room[1:-1], table.lookup(keys)[0])
    assert np.isnan(room[[0, -1]]).all()
    with pytest.raises(ValueError, match="contiguous"):
        table.lookup(keys, room)


@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("dim", [32, 40, 64])
def test_an_array_larger_than_the_caches_gets_the_same_rows_wherever_it_begins(dim: int, shift: int) -> None:
    table, keys = table_of(dim)
    n = (25 << 20) // (4 * dim)
    keys = np.random.default_rng(2).choice(keys, n)
    rows = table.find(keys)
    expected = np.where((rows >= 0)[:, None], table.values[rows], 0)
    assert 0 < (rows < 0).sum() < n
    room = np.full((n + 2) * dim + shift + 16, np.nan, np.float32)
    shift += -room.ctypes.data % 64 // 4
    out = room[shift + dim : shift + (n + 1) * dim].reshape(n, dim)
    for write in (lambda: table.lookup(keys, out), lambda: table.gather(rows, out)):
        out[:] = np.nan
        write()
        assert np.array_equal(out, expected)
    out[:] = np.nan
    _, new = table.lookup_or_insert(keys, 3, out=out)
    assert np.array_equal(out, table.values[new])
    assert np.array_equal(out[rows >= 0], expected[rows >= 0])
    assert np.isnan(room[: shift + dim]).all()
    assert np.isnan(room[shift + (n + 1) * dim :]).all()
    wrong = rows.copy()
    wrong[-1] = len(table) + 1
    with pytest.raises(ValueError, match="row numbers"):
        table.gather(wrong, out)


def test_equal_new_keys_of_one_block_get_one_row() -> None:
    table = EmbeddingTable(slot="x", dim=2, init_scale=1.0)
    rows = table.assign(np.array([5, 6, 5, 5, 7, 6] * 40), tick=1)
    assert len(table) == 3
    assert rows.reshape(40, 6).tolist() == [rows[:6].tolist()] * 40
    assert table.find(np.array([5, 6, 5, 5, 7, 6])).tolist() == rows[:6].tolist()
