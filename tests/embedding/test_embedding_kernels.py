"""Initial vectors, half precision, unique keys and grouped sums, each against plain NumPy or written-down bits."""

import numpy as np
import pytest

from infra.embedding import EmbeddingTable, group_sum, initial_vectors, unique_inverse
from infra.embedding.served.half import gather_half, to_half

RELEASED = [[990198157, 1001300791], [3149105985, 3133287194], [993820685, 3151725605], [3147500850, 3106120950]]


def test_initial_vectors_are_the_released_ones() -> None:
    """Changing them would make every restored or replayed model another one."""
    got = initial_vectors(np.array([0, 1, -1, 2**63 - 1], np.int64), "item", 1, 2, 0.01)
    assert got.view(np.uint32).tolist() == RELEASED


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e-30, 0.0, 3.3])
def test_kernel_and_numpy_make_the_same_bits(scale: float) -> None:
    keys = np.random.default_rng(2).integers(-(2**63), 2**63 - 1, 5_000)
    table = EmbeddingTable(slot="word", dim=17, seed=-5, init_scale=scale)
    made = table.gather(table.assign(keys, tick=0))
    assert np.array_equal(made.view(np.uint32), initial_vectors(keys, "word", -5, 17, scale).view(np.uint32))


def test_initial_vectors_are_uniform_and_differ_by_seed_slot_and_key() -> None:
    keys = np.arange(100_000, dtype=np.int64)
    x = initial_vectors(keys, "item", 1, 4, 2.0)
    assert np.abs(x).max() <= 2.0
    assert np.abs(x.mean(axis=0)).max() < 0.02  # standard error 0.0037
    assert np.abs(x.var(axis=0) - 4 / 3).max() < 0.02
    assert np.abs(np.corrcoef(x.T) - np.eye(4)).max() < 0.02
    assert len(np.unique(x[:, 0])) > 99_000
    assert not np.array_equal(x, initial_vectors(keys, "item", 2, 4, 2.0))
    assert not np.array_equal(x, initial_vectors(keys, "user", 1, 4, 2.0))


def test_every_half_is_widened_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(-1, 16)
    out = np.empty(bits.shape, np.float32)
    gather_half(bits, np.arange(len(bits), dtype=np.int32), out)
    expected = bits.view(np.float16).astype(np.float32)
    number = ~np.isnan(expected)
    assert np.array_equal(np.isnan(out), ~number)
    assert np.array_equal(out.view(np.uint32)[number], expected.view(np.uint32)[number])


def test_what_is_too_large_for_a_half_becomes_its_largest() -> None:
    halves = to_half(np.array([1e30, -1e30, 65519.9, np.inf, np.nan, 1e-30], np.float32)).view(np.float16)
    assert halves[:4].tolist() == [65504.0, -65504.0, 65504.0, 65504.0]
    assert np.isnan(halves[4])
    assert halves[5] == 0


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_unique_keys_come_in_order_of_first_appearance(n: int) -> None:
    keys = np.random.default_rng(n).integers(-20, 20, n) * 2**58
    unique, inverse = unique_inverse(keys)
    assert unique.tolist() == list(dict.fromkeys(keys.tolist()))
    assert np.array_equal(unique[inverse], keys)
    assert inverse.dtype == np.int32


def test_grouped_sums_add_in_input_order() -> None:
    rng = np.random.default_rng(8)
    grads = (rng.normal(size=(5_000, 5)) * 10.0 ** rng.integers(-6, 6, (5_000, 1))).astype(np.float32)
    groups = rng.integers(0, 40, 5_000).astype(np.int32)
    expected = np.zeros((41, 5), np.float32)
    for g, row in zip(groups.tolist(), grads, strict=True):
        expected[g] += row
    assert np.array_equal(group_sum(grads, groups, 41), expected)
    assert np.array_equal(group_sum(grads[:, ::-1], groups, 41), expected[:, ::-1])
    assert group_sum(grads[:0], groups[:0], 3).tolist() == [[0.0] * 5] * 3


def test_grouped_sums_refuse_what_does_not_fit() -> None:
    grads = np.ones((3, 2), np.float32)
    for groups, m in (([0, 1, 2], 2), ([0, -1, 1], 2)):
        with pytest.raises(ValueError, match="groups from"):
            group_sum(grads, np.array(groups, np.int32), m)
    with pytest.raises(ValueError, match="do not match"):
        group_sum(grads, np.array([0], np.int32), 1)
